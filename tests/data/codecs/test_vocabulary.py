"""The rule of normalisation, and characters as numbers."""

import numpy as np
import pytest

from simmim_jax.data.codecs.vocabulary import TextRule, Vocabulary
from simmim_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\tWorld!\n", "hello world"),
        # A letter and a combining accent become one character, as in NFC.
        ("Cafe\u0301", "caf\u00e9"),
        ("Stra\u00dfe", "strasse"),
        ("don\u2019t 'quote' rock'n'roll", "don't quote rock'n'roll"),
        ("so-called \u2014 x", "so called x"),
        ("co\u00adop\u200b", "coop"),
        (
            "\u0401\u043b\u043a\u0430, \u0439\u043e\u0434",
            "\u0451\u043b\u043a\u0430 \u0439\u043e\u0434",
        ),
        ("5 % + 3 \u20ac", "5 3"),
        ("...", ""),
    ],
)
def test_the_rule_without_case_and_punctuation(text, expected):
    rule = TextRule()
    assert rule(text) == expected
    assert rule(expected) == expected


def test_case_and_punctuation_may_be_kept():
    assert TextRule(casefold=False)("Hello, World") == "Hello World"
    assert TextRule(punctuation=True)("Hello,  World") == "hello, world"


def test_characters_are_numbered_from_one():
    vocabulary = Vocabulary.of(["ba c", "d"])
    assert vocabulary.characters == " abcd"
    assert vocabulary.num_classes == 6
    labels = vocabulary.encode("bad dab")
    np.testing.assert_array_equal(labels, [3, 2, 5, 1, 5, 2, 3])
    assert vocabulary.decode(labels) == "bad dab"


def test_a_character_that_training_did_not_have_is_left_out():
    assert Vocabulary("ab").encode("axb").tolist() == [1, 2]


def test_transcripts_without_characters_raise():
    with pytest.raises(UserError, match=r"of config\.data\.train_split"):
        Vocabulary.of(["", ""])
