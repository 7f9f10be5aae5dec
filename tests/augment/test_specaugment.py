"""What SpecAugment hides of spectrograms."""

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.augment.specaugment import spec_augment

WIDTHS = {"time_masks": 2, "time_width": 10, "band_masks": 1, "band_width": 4}
FRAMES = jnp.array([100, 60, 20] * 20)


def hidden(**changes):
    images = jnp.ones((60, 8, 100, 1))
    augmented = spec_augment(jax.random.key(0), images, FRAMES, **WIDTHS | changes)
    return np.asarray(augmented)[..., 0] == 0


def test_spans_of_time_hide_all_bands_within_the_utterance():
    in_time = hidden(band_masks=0)
    assert (in_time == in_time[:, :1]).all()
    counts = in_time[:, 0].sum(1)
    # Two masks of at most 10 frames, or a fifth of the utterance.
    assert 15 < counts.max() <= 20
    assert counts[2::3].max() <= 8
    assert counts.min() < 5
    for row, frames in zip(in_time[:, 0], FRAMES.tolist(), strict=True):
        assert not row[frames:].any()


def test_ranges_of_bands_hide_all_frames():
    in_bands = hidden(time_masks=0)
    assert (in_bands == in_bands[:, :, :1]).all()
    assert set(in_bands[:, :, 0].sum(1)) == {0, 1, 2, 3, 4}


def test_without_masks_nothing_is_hidden():
    assert not hidden(time_masks=0, band_masks=0).any()
