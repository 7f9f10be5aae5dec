"""Views of sounds: windows, padding, and bands without values."""

import numpy as np
import pytest
from sounds import encoded, speech, tone

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.views.filter_bank import log_mel
from simmim_jax.data.views.spectrogram import RandomSpectrogramView, SpectrogramView

RNG = np.random.default_rng(0)


def seen(view, samples, **fields):
    """Return the row of a sound."""
    example = {"image": encoded(samples, subtype="FLOAT"), "label": 3} | fields
    row = view(example, np.random.default_rng(1))
    for name, spec in view.spec.items():
        assert np.shape(row[name]) == spec.shape
    return row


def test_a_sound_of_the_length_is_its_filter_bank_with_low_bands_below():
    row = seen(SpectrogramView(size=(80, 98)), speech())
    np.testing.assert_array_equal(row["image"][::-1, :, 0].T, log_mel(speech(), 80))
    assert row["image"].dtype == np.float32
    assert row["label"] == 3


def test_evaluation_takes_the_middle():
    row = seen(SpectrogramView(size=(80, 8)), speech())
    expected = log_mel(speech(), 80)[45:53]
    np.testing.assert_array_equal(row["image"][::-1, :, 0].T, expected)


def test_training_takes_parts_from_all_over():
    view = RandomSpectrogramView(size=(40, 8))
    example = {"image": encoded(speech(), subtype="FLOAT"), "label": -1}
    starts = [view.start(16_000 - 1520, RNG) for _ in range(200)]
    assert min(starts) < 500
    assert max(starts) > 14_000
    rows = [view(example, np.random.default_rng(seed))["image"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()
    assert view.start(0, RNG) == 0


@pytest.mark.parametrize("view", [SpectrogramView, RandomSpectrogramView])
def test_padding_is_no_measurement_and_changes_nothing(view):
    short = seen(view(size=(80, 40)), tone(0.195))["image"]
    shorter = seen(view(size=(80, 18)), tone(0.195))["image"]
    np.testing.assert_array_equal(short[:, :18], shorter)
    assert np.isnan(short[:, 18:]).all()
    assert np.isfinite(shorter).all()


def test_silence_is_a_measurement_and_a_click_is_none():
    row = seen(SpectrogramView(size=(80, 8)), np.zeros(16_000, np.float32))
    np.testing.assert_allclose(row["image"], -15.942385)
    with pytest.raises(BadImage, match="lasts 10 ms: expected at least 25 ms"):
        seen(SpectrogramView(size=(80, 8)), tone(0.01))


def test_a_band_that_no_sound_changes_has_no_value():
    image = seen(SpectrogramView(size=(128, 98)), speech())["image"]
    assert np.flatnonzero(np.isnan(image).any((1, 2))).tolist() == [124]
    assert np.isnan(image[124]).all()
