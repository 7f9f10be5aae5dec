"""Lines of text as pixels: cells, padding, fonts, and the same pixels everywhere."""

import hashlib

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.views.text import (
    INK,
    PADDING,
    PAPER,
    TextView,
    missing_glyphs,
    visible,
)

SIZE = (16, 128)  # 16 characters


def draw(line, rng=None, **fields):
    view = TextView(**{"size": SIZE} | fields)
    row = view({"image": line, "label": 3}, rng or np.random.default_rng(0))
    assert row["label"] == 3
    spec = view.spec["image"]
    assert (row["image"].shape, row["image"].dtype) == (spec.shape, spec.dtype)
    return row["image"][..., 0]


def test_a_square_patch_holds_two_characters():
    line = draw("abcdef")
    patches = line.reshape(16, 8, 16).transpose(1, 0, 2)
    for number, bigram in enumerate(("ab", "cd", "ef")):
        np.testing.assert_array_equal(patches[number], draw(bigram)[:, :16])
    assert (patches[3:] == PADDING).all()


def test_text_is_black_on_white_and_the_rest_is_padding():
    line = draw("abc")
    assert (line[:, 24:] == PADDING).all()
    text = line[:, :24]
    assert (text.min(), text.max()) == (INK, PAPER)
    assert (draw("a b")[:, 8:16] == PAPER).all()  # a space is not padding


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # With Pillow 11.3.0 (FreeType 2.13.3), 12.0.0 and 13.0.0 (2.14.3).
        ("monospaced", "4a4b86c8dc88976d"),
        ("proportional", "7564a19f3fe1fdbf"),
    ],
)
def test_pixels_are_the_same_on_every_machine(layout, expected):
    lines = ("AVATAR office To", "Ελλάδα, Привет", "žluťoučký kůň!", "Ștefan cel Mare")
    pixels = np.stack([draw(line, layout=layout) for line in lines])
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == expected


def test_proportional_text_takes_the_width_of_pillows_basic_layout():
    width = np.flatnonzero((draw("AVATAR", layout="proportional") != PADDING).all(0))
    assert width.tolist() == list(range(len(width)))
    assert len(width) < 6 * 8  # narrower than in cells


def test_longer_lines_are_cut_and_in_training_from_a_random_character_on():
    text = "".join(map(chr, range(ord("A"), ord("A") + 26)))
    np.testing.assert_array_equal(draw(text), draw(text[:16]))
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(60):
        line = draw(text, rng, random=True)
        starts |= {s for s in range(26) if (line == draw(text[s : s + 16])).all()}
    assert starts == set(range(11))


def test_accents_are_drawn_over_their_letter():
    np.testing.assert_array_equal(draw("e\u0301a"), draw("éa"))  # composed
    dotted, plain = draw("q\u0323a"), draw("qa")  # there is no composed one
    np.testing.assert_array_equal(dotted[:, 8:], plain[:, 8:])
    assert (dotted[:, :8] != plain[:, :8]).any()


def test_wide_characters_have_two_cells():
    assert (draw("漢a")[:, 24:] == PADDING).all()
    np.testing.assert_array_equal(draw("漢a")[:, 16:24], draw("a")[:, :8])


def test_white_space_and_control_characters():
    assert visible(" a\t b\u00ad\u200bc\n") == "a bc"


def test_characters_without_a_glyph_are_counted():
    lines = ["a漢b漢", "→ok☃"]
    missing, total = missing_glyphs(lines, "monospaced", "")
    assert missing == {"漢": 2, "☃": 1}
    assert total == 8


@pytest.mark.parametrize("line", ["שלום", "a سلام", "नमस्ते"])
def test_joined_and_reversed_letters_need_raqm(line):
    with pytest.raises(BadImage, match="text_layout=raqm") as raised:
        draw(line)
    assert raised.value.reason == "needs raqm"


def test_raqm_is_an_error_where_pillow_lacks_it(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    with pytest.raises(ValueError, match="needs Raqm in Pillow, and FriBiDi"):
        draw("abc", size=(18, 128), layout="raqm")


def test_a_line_without_characters_is_a_bad_example():
    with pytest.raises(BadImage) as raised:
        draw(" \u200b ")
    assert raised.value.reason == "empty"


@pytest.mark.parametrize(
    ("line", "fields", "message"),
    [
        (b"\xff\xd8", {}, "expected str"),
        ("a", {"size": (5, 128)}, "too low for letters"),
        ("a", {"font": "/none.ttf"}, "config.data.font='/none.ttf' cannot be read"),
    ],
)
def test_errors_name_the_field(line, fields, message):
    with pytest.raises(ValueError, match=message):
        draw(line, **fields)
