"""Build simmim_jax/data/bundled/DejaVu*-subset.ttf: fonts that text is drawn with.

Source: Debian package fonts-dejavu-core 2.37-6. Kept are Latin, Greek and Cyrillic
letters, punctuation, currencies, arrows and mathematical signs, with their hints and
kerning: FreeType draws the same pixels as from the whole fonts.

    apt-get download fonts-dejavu-core && dpkg-deb -x fonts-dejavu-core_*.deb dejavu
    python scripts/build_fonts.py dejavu/usr/share/fonts/truetype/dejavu \
        simmim_jax/data/bundled
"""

import argparse
import pathlib

from fontTools import subset

FONTS = ("DejaVuSansMono", "DejaVuSans")
BLOCKS = (
    (0x0020, 0x052F),  # Latin, phonetic, Greek, Cyrillic
    (0x1E00, 0x1FFF),  # with more accents
    (0x2000, 0x206F),  # punctuation
    (0x20A0, 0x20BF),  # currencies
    (0x2100, 0x215F),  # letterlike signs, fractions
    (0x2190, 0x22FF),  # arrows, mathematics
)


def main() -> None:
    """Write the fonts, print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fonts", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    options = subset.Options(
        hinting=True,
        layout_features=[],
        legacy_kern=True,
        name_IDs=["*"],
        notdef_outline=True,  # the box of missing glyphs
        drop_tables=["FFTM"],
    )
    for name in FONTS:
        font = subset.load_font(str(arguments.fonts / f"{name}.ttf"), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(
            unicodes=[code for first, last in BLOCKS for code in range(first, last + 1)]
        )
        subsetter.subset(font)
        path = arguments.out / f"{name}-subset.ttf"
        subset.save_font(font, str(path), options)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
