"""Durations in steps."""

import pytest

from simmim_jax.config import durations
from simmim_jax.config.durations import num_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("800 epochs", 500_000),  # the official ImageNet run: 625 steps an epoch
        ("10 steps", 10),
        ("4096 examples", 2),
        ("0 epochs", 0),
        ("1 examples", 1),
    ],
)
def test_steps_of_a_duration(duration, steps):
    assert num_steps(duration, batch_size=2048, num_examples=1_281_167) == steps


def test_epochs_of_less_than_a_batch():
    assert num_steps("10 epochs", batch_size=64, num_examples=32) == 5


@pytest.mark.parametrize(
    ("duration", "factor", "scaled"),
    [
        ("5 epochs", 0.1, "0.5 epochs"),
        ("5 epochs", 0.2, "1 epochs"),
        ("0.3 epochs", 1 / 3, "0.1 epochs"),
        ("500 steps", 20 / 10, "1000 steps"),
        ("25 steps", 20 / 16, "31 steps"),
        ("4 steps", 0.1, "1 steps"),
        ("0 steps", 2, "0 steps"),
        ("1234567 examples", 1, "1234567 examples"),
        ("300000 examples", 0.1, "30000 examples"),
    ],
)
def test_scaled_duration_keeps_its_unit(duration, factor, scaled):
    assert durations.scaled(duration, factor) == scaled


@pytest.mark.parametrize(
    ("duration", "parsed"),
    [
        ("100 epochs", (100, "epochs")),
        ("0.5 epochs", (0.5, "epochs")),
        ("1e6 examples", (1_000_000, "examples")),
        ("0 steps", (0, "steps")),
    ],
)
def test_amount_and_unit(duration, parsed):
    assert durations.parse(duration) == parsed


@pytest.mark.parametrize(
    "duration",
    [
        "10",
        "ten epochs",
        "-1 steps",
        "10 days",
        "",
        "nan steps",
        "inf epochs",
        "10  steps",
    ],
)
def test_invalid_duration_names_what_was_expected(duration):
    expected = f"invalid duration {duration!r}: expected a number and a unit"
    with pytest.raises(ValueError, match=expected):
        num_steps(duration, 64, 1000)
