"""Random masks: how many units, whole units, and that they are random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from simmim_jax.masking import num_masked, random_mask, upsample

# Image size, mask unit, patch size, ratio -> units hidden (official generator).
OFFICIAL = [
    (192, 32, 4, 0.6, 22),
    (224, 32, 16, 0.6, 30),
    (192, 32, 4, 0.5, 18),
    (192, 16, 4, 0.6, 87),
    (192, 8, 4, 0.8, 461),
    (192, 4, 4, 0.8, 1844),
    (224, 16, 16, 0.6, 118),
    (256, 32, 16, 0.6, 39),
    (384, 32, 16, 0.6, 87),
]


jitted = jax.jit(random_mask, static_argnums=(1, 2, 3, 4))


def draw(seed=0, batch=8, grid=(6, 6), unit=(2, 2), ratio=0.6):
    return np.asarray(jitted(jax.random.key(seed), batch, grid, unit, ratio))


def in_units(mask, unit):
    """[b h w] -> [b units patches-of-a-unit]."""
    b, h, w = mask.shape
    p, q = unit
    blocks = mask.reshape(b, h // p, p, w // q, q).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(b, -1, p * q)


@pytest.mark.parametrize(("size", "unit", "patch", "ratio", "hidden"), OFFICIAL)
def test_hides_as_many_units_of_every_image_as_the_official_generator(
    size, unit, patch, ratio, hidden
):
    grid, scale = size // patch, unit // patch
    mask = draw(batch=4, grid=(grid, grid), unit=(scale, scale), ratio=ratio)
    assert mask.shape == (4, grid, grid)
    assert mask.dtype == bool
    assert (mask.sum((1, 2)) == hidden * scale**2).all()


@pytest.mark.parametrize(("size", "unit", "patch", "ratio", "hidden"), OFFICIAL)
def test_number_of_hidden_units_is_rounded_up(size, unit, patch, ratio, hidden):
    assert num_masked((size // unit) ** 2, ratio) == hidden


@pytest.mark.parametrize("unit", [(1, 1), (2, 2), (3, 3), (1, 4), (6, 2)])
def test_units_are_hidden_whole(unit):
    units = in_units(draw(grid=(6, 12), unit=unit), unit)
    assert (units.all(2) == units.any(2)).all()
    assert units.any()
    assert not units.all()


def test_grids_and_units_need_not_be_square():
    mask = draw(batch=3, grid=(4, 12), unit=(2, 3), ratio=0.6)
    assert mask.shape == (3, 4, 12)
    assert (mask.sum((1, 2)) == 5 * 6).all()  # ceil(0.6 * 8) units of 6 patches


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_ratio_may_be_none_or_all(ratio, share):
    assert draw(ratio=ratio).mean() == share


def test_same_key_gives_the_same_masks_jitted_or_not():
    eager = random_mask(jax.random.key(0), 8, (6, 6), (2, 2), 0.6)
    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(draw(), eager)


def test_other_keys_and_other_samples_give_other_masks():
    first, second = draw(seed=0, grid=(12, 12)), draw(seed=1, grid=(12, 12))
    assert not (first == second).all((1, 2)).any()
    flat = first.reshape(8, -1)
    assert len(np.unique(flat, axis=0)) == 8


def test_every_unit_is_equally_likely_and_pairs_are_not_preferred():
    samples, n, k = 20_000, 9, 6
    mask = draw(batch=samples, grid=(3, 3), unit=(1, 1), ratio=0.6)
    flat = mask.reshape(samples, n).astype(float)
    share = k / n
    spread = np.sqrt(share * (1 - share) / samples)
    assert np.abs(flat.mean(0) - share).max() < 5 * spread
    together = flat.T @ flat / samples
    expected = k * (k - 1) / (n * (n - 1))
    pairs = together[~np.eye(n, dtype=bool)]
    spread = np.sqrt(expected * (1 - expected) / samples)
    assert np.abs(pairs - expected).max() < 5 * spread


def test_samples_of_a_batch_are_independent():
    mask = draw(batch=20_000, grid=(3, 3), unit=(1, 1), ratio=0.6).reshape(-1, 2, 9)
    both = (mask[:, 0] & mask[:, 1]).mean(0)
    spread = np.sqrt(4 / 9 * 5 / 9 / len(mask))
    assert np.abs(both - (6 / 9) ** 2).max() < 5 * spread


def test_distance_to_what_is_visible_is_that_of_the_paper():
    # Monte Carlo of the official generator at 192 pixels: 15.55 ± 3.3 for unit 32.
    mask = draw(batch=60, grid=(48, 48), unit=(8, 8), ratio=0.6)
    pixels = np.asarray(upsample(jnp.asarray(mask), 192, 192))
    distances = [ndimage.distance_transform_edt(m)[m].mean() for m in pixels]
    assert abs(np.mean(distances) - 15.55) < 4 * 3.3 / np.sqrt(60)


@pytest.mark.parametrize(
    ("grid", "unit"), [((7, 6), (2, 2)), ((6, 7), (2, 2)), ((1, 4), (2, 2))]
)
def test_units_that_do_not_tile_raise_and_name_the_sizes(grid, unit):
    with pytest.raises(ValueError, match="do not tile") as error:
        draw(grid=grid, unit=unit)
    assert f"units of {unit[0]}x{unit[1]}" in str(error.value)
    assert f"grid of {grid[0]}x{grid[1]}" in str(error.value)
    assert "config.mask.unit_size" in str(error.value)


def test_upsample_repeats_each_value_over_its_rectangle():
    mask = jnp.array([[[True, False], [False, True]]])
    expected = np.array(
        [
            [
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 1],
                [0, 0, 0, 1, 1, 1],
            ]
        ]
    )
    np.testing.assert_array_equal(upsample(mask, 4, 6), expected)
