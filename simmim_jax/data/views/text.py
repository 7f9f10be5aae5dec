"""Views of text: a line, drawn as a low and wide image.

Pixels are the same on every machine and with every release of Pillow that
pyproject.toml allows, but for layout="raqm" (tests/data/views/test_text_views.py).
"""

import collections
import dataclasses
import functools
import math
import pathlib
import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.views.base import Spec, View
from simmim_jax.errors import UserError

# Black on white; the rest of a line is no data.
INK, PAPER, PADDING = 0, 254, 255

_FONTS = pathlib.Path(__file__).parents[1] / "bundled"
_BUNDLED = {
    "monospaced": "DejaVuSansMono-subset.ttf",
    "proportional": "DejaVuSans-subset.ttf",
    "raqm": "DejaVuSans-subset.ttf",
}
# Scripts whose letters are joined or reordered, as names of characters begin; beside
# those that are written from right to left.
_SHAPED = (
    "BALINESE", "BENGALI", "DEVANAGARI", "GUJARATI", "GURMUKHI", "JAVANESE", "KANNADA",
    "KHMER", "LAO", "MALAYALAM", "MONGOLIAN", "MYANMAR", "ORIYA", "SINHALA", "TAMIL",
    "TELUGU", "THAI", "TIBETAN",
)  # fmt: skip
_SMALLEST = 5  # size of a font [pixels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextView(View):
    """A line of text in black on white from the left edge on, and its label.

    What a line leaves of the width is PADDING.

    size: (height, width) [pixels]; layout: "monospaced", where each character has a
    cell half as wide as the line is high, and wide ones two (a square patch then holds
    two characters, as in Lotz et al. 2023, arXiv 2311.00522); "proportional", as in
    PIXEL (Rust et al. 2023, arXiv 2207.06991); or "raqm", that with joined letters and
    from right to left. font: a file, "" for DejaVu Sans (Mono) of Latin, Greek and
    Cyrillic letters; random: of a longer line, take a random part, not the beginning.
    """

    size: tuple[int, int]
    layout: str = "monospaced"
    font: str = ""
    random: bool = False
    nodata: ClassVar[float | None] = PADDING

    @property
    def spec(self) -> dict[str, Spec]:
        """{"image": [h w 1] uint8, "label": [] int32}."""
        return {
            "image": Spec((*self.size, 1), np.dtype(np.uint8)),
            "label": Spec((), np.dtype(np.int32)),
        }

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Draw `example["image"]`, a str.

        raises: BadImage for a line without characters, or with those of another layout;
        UserError for another type, or a font that cannot be used.
        """
        line = example["image"]
        if not isinstance(line, str):
            raise UserError(
                "config.data.view='text', but examples are no lines of text: expected "
                "str. Name a .txt, .csv, .tsv, .jsonl or .parquet file of text."
            )
        text = visible(line)
        if not text:
            raise BadImage("empty", "A line has no characters.")
        if self.layout != "raqm":
            _check_script(text)
        cells = self.size[1] // _cell_width(self.size[0])
        if self.random and len(text) > cells:
            start = int(rng.integers(len(text) - cells + 1))
            text = text[start:]
        return {"image": self._draw(text), "label": example["label"]}

    def _draw(self, text: str) -> np.ndarray:
        """Return uint8 [h w 1]."""
        height, width = self.size
        # No character is narrower than a pixel.
        draw = _cells if self.layout == "monospaced" else _proportional
        drawn = draw(
            text[:width], height, font_file(self.layout, self.font), self.layout
        )
        image = np.full((height, width, 1), PADDING, np.uint8)
        drawn = drawn[:, :width]
        image[:, : drawn.shape[1], 0] = drawn
        return image


def visible(line: str) -> str:
    """Return the characters of a line that are drawn: composed, white space as " "."""
    words = " ".join(unicodedata.normalize("NFC", line).split())
    return "".join(c for c in words if unicodedata.category(c)[0] != "C")


def missing_glyphs(
    lines: Iterable[str], layout: str, font: str
) -> tuple[collections.Counter[str], int]:
    """Return how often characters occur that a font lacks, and the number of all.

    They are drawn as boxes. layout, font: as in `TextView`.
    """
    from fontTools.ttLib import TTFont

    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        counts.update(visible(line))
    with TTFont(font_file(layout, font), lazy=True, fontNumber=0) as opened:
        known = opened.getBestCmap()
    lacking = {c: n for c, n in counts.items() if ord(c) not in known}
    return collections.Counter(lacking), counts.total()


def font_file(layout: str, font: str) -> str:
    """Return the file of a font, by default the bundled one of a layout."""
    return font or str(_FONTS / _BUNDLED[layout])


def _check_script(text: str) -> None:
    """Raise BadImage for characters that this layout would draw in a wrong way."""
    for character in text:
        if character.isascii():
            continue
        is_reversed = unicodedata.bidirectional(character) in ("R", "AL")
        if is_reversed or unicodedata.name(character, "").startswith(_SHAPED):
            raise BadImage(
                "needs raqm",
                f"{unicodedata.name(character, repr(character))} is of a script whose "
                "letters are joined or run from right to left: set "
                "--config.data.text_layout=raqm, with a font of these letters in "
                "--config.data.font.",
            )


# ---- Monospaced ----------------------------------------------------------------------


def _cell_width(height: int) -> int:
    return height // 2


def _cells(text: str, height: int, file: str, layout: str) -> np.ndarray:
    """Return uint8 [h w], a cell a character, two for a wide one."""
    cells: list[np.ndarray] = []
    for character in text:
        cell = _cell(character, height, file, layout)
        if unicodedata.combining(character) and cells:
            cells[-1] = np.minimum(cells[-1], cell[:, : cells[-1].shape[1]])
        else:
            cells.append(cell)
    return np.concatenate(cells, axis=1)


@functools.lru_cache(maxsize=2**14)
def _cell(character: str, height: int, file: str, layout: str) -> np.ndarray:
    width = _cell_width(height)
    font = _font(file, height, width, layout)
    wide = unicodedata.east_asian_width(character) in "WF"
    return _paint(character, font, (height, width * (2 if wide else 1)))


# ---- Proportional --------------------------------------------------------------------


def _proportional(text: str, height: int, file: str, layout: str) -> np.ndarray:
    """Return uint8 [h w], of the width of the text."""
    font = _font(file, height, height, layout)
    return _paint(text, font, (height, math.ceil(font.getlength(text))))


# ---- Fonts ---------------------------------------------------------------------------


def _paint(
    text: str, font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> np.ndarray:
    """Return uint8 `size`, with the baseline of the font."""
    image = Image.new("L", size[::-1])
    ascent, descent = font.getmetrics()
    baseline = (size[0] - ascent - descent) // 2 + ascent
    draw = ImageDraw.Draw(image)
    draw.text((0, baseline), text, fill=255, font=font, anchor="ls")
    coverage = np.asarray(image, np.uint16)
    return (PAPER - coverage * (PAPER - INK) // 255).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _font(file: str, height: int, width: int, layout: str) -> ImageFont.FreeTypeFont:
    """Return the largest size of a font whose lines and letters fit [pixels].

    raises: UserError if there is none, for a file that is no font, and where Pillow
    lacks Raqm.
    """
    # Named, because Pillow's default differs from machine to machine.
    engine = ImageFont.Layout.BASIC
    if layout == "raqm":
        if not features.check("raqm"):
            raise UserError(
                "config.data.text_layout='raqm' needs Raqm in Pillow, and FriBiDi on "
                "the system (Debian: apt install libfribidi0). Install it, or choose "
                "'monospaced' or 'proportional' for other scripts."
            )
        engine = ImageFont.Layout.RAQM
    for size in range(height, _SMALLEST - 1, -1):
        try:
            font = ImageFont.truetype(file, size, layout_engine=engine)
        except OSError as error:
            raise UserError(
                f"config.data.font={file!r} cannot be read ({error}): expected a "
                "TrueType or OpenType file."
            ) from error
        if sum(font.getmetrics()) <= height and font.getlength("M") <= width:
            return font
    raise UserError(
        f"config.data.image_size has lines of {height} pixels: too low for letters. "
        "Expected 8 or more."
    )
