"""Write the definitions of WordNet with their topics, for configs/text_topics.py.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb packages
    python scripts/cut_wordnet.py packages/usr/share data/topics.csv

The package, wordnet-base 3.0-37 of Debian 12 (licence WordNet-3.0), has the meanings of
words in data.noun, data.verb, data.adj and data.adv: after a bar the definition, and in
the second field the number of one of 45 topics, such as noun.animal, whose names stand
in the manual page lexnames.5WN. A tenth of the definitions is held out; those that
begin alike are in the same split.
"""

import argparse
import csv
import gzip
import random
import re
from pathlib import Path

HELD_OUT = 0.1  # of the definitions
BEGINNING = 64  # characters: what a model sees of them


def cut_wordnet(share: Path, out: Path) -> None:
    """Write columns split, text and label; equal definitions have their first topic."""
    manual = share / "man" / "man5" / "lexnames.5WN.gz"
    page = gzip.decompress(manual.read_bytes()).decode()
    topics = dict(re.findall(r"^(\d\d)\t(\S+) *\t", page, re.MULTILINE))
    found: dict[str, str] = {}
    for part in ("noun", "verb", "adj", "adv"):
        text = (share / "wordnet" / f"data.{part}").read_text("utf-8")
        for line in text.splitlines():
            if line.startswith("  "):  # of the licence
                continue
            fields, definition = line.split(" | ", 1)
            found.setdefault(definition.strip(), topics[fields.split()[1]])
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("split", "text", "label"))
        for definition, topic in found.items():
            chance = random.Random(definition[:BEGINNING]).random()
            split = "validation" if chance < HELD_OUT else "train"
            table.writerow((split, definition, topic))
    print(f"{out}: {len(found):,} definitions, {len(topics)} topics")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", type=Path, help="usr/share of the package")
    parser.add_argument("out", type=Path, help="a .csv")
    args = parser.parse_args()
    cut_wordnet(args.share, args.out)


if __name__ == "__main__":
    main()
