"""Error rates against jiwer, and their interval."""

import numpy as np
import pytest

from simmim_jax.tasks.error_rates import characters, edits, words

# References, hypotheses, WER and CER of jiwer 4.0.0.
JIWER = [
    (["a b c d"], ["a x c"], 0.5, 0.42857142857142855),
    # An empty reference counts what is inserted.
    ([""], ["a b"], 2, 3),
    (["", "a"], ["a b", "a"], 2.0, 3.0),
    (["the cat sat"], ["cat sat on"], 0.6666666666666666, 0.6363636363636364),
    (["a b"], ["b a"], 1.0, 0.6666666666666666),
    (["a b c d e"], ["b c x d y e"], 0.6, 0.5555555555555556),
]


@pytest.mark.parametrize(("references", "hypotheses", "wer", "cer"), JIWER)
def test_rates_are_those_of_jiwer(references, hypotheses, wer, cer):
    assert words(references, hypotheses).rate == pytest.approx(wer)
    assert characters(references, hypotheses).rate == pytest.approx(cer)


def test_white_space_of_any_kind_ends_a_word():
    # jiwer 4.0.0 sees two words in "a\tb c", and a WER of 1.0.
    assert words(["a\tb c"], ["a b c"]).rate == 0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("kitten", "sitting", (2, 1, 0)),
        ("abcd", "axc", (1, 0, 1)),
        ("", "ab", (0, 2, 0)),
        ("ab", "", (0, 0, 2)),
        ("same", "same", (0, 0, 0)),
        # Two substitutions rather than an insertion and a deletion.
        ("ab", "ba", (2, 0, 0)),
    ],
)
def test_edits_are_counted_by_kind(reference, hypothesis, counts):
    assert edits(reference, hypothesis) == counts


def test_edits_are_as_few_as_a_table_finds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (rng.integers(3, size=rng.integers(8)).tolist() for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                table[i, j] = min(
                    table[i - 1, j] + 1,
                    table[i, j - 1] + 1,
                    table[i - 1, j - 1] + (x != y),
                )
        counts = edits(a, b)
        assert sum(counts) == table[-1, -1]
        assert counts[1] - counts[2] == len(b) - len(a)


def test_the_interval_covers_the_rate_and_narrows_with_utterances():
    few = words(["a b c d", "e f"] * 5, ["a b c x", "e f"] * 5)
    many = words(["a b c d", "e f"] * 500, ["a b c x", "e f"] * 500)
    for found in (few, many):
        low, high = found.interval
        assert found.rate == pytest.approx(1 / 6)
        assert low < found.rate < high
    width = np.diff(many.interval) / np.diff(few.interval)
    assert width == pytest.approx(0.1, abs=0.03)
    assert many.to_dict()["substitutions"] == 500
