"""Windows of Swin: partition, shift, masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from simmim_jax.models import windows
from simmim_jax.models.attention import attention
from simmim_jax.models.layers import relative_offsets
from simmim_jax.models.windows import (
    fit_window,
    from_windows,
    padded,
    shift_mask,
    to_windows,
)


def grid_of_numbers(height, width):
    return np.arange(2.0 * height * width).reshape(2, height, width, 1)


@pytest.mark.parametrize("pad_after_shift", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("grid", [(8, 8), (4, 12), (7, 8), (5, 9), (3, 3)])
def test_from_windows_inverts_to_windows(grid, shift, pad_after_shift):
    x = grid_of_numbers(*grid)
    windows = to_windows(x, 4, shift, pad_after_shift)
    assert len(windows) % 16 == 0
    found = from_windows(windows, grid, 4, shift, pad_after_shift)
    np.testing.assert_array_equal(found, x)


def test_padding_may_come_before_the_shift_or_after_it():
    x = 1 + grid_of_numbers(3, 3)[:1]
    before, after = (
        np.asarray(to_windows(x, 2, 1, order)).reshape(4, 4) for order in (False, True)
    )
    # 1 2 3 0    5 6 0 4        1 2 3    5 6 4 0
    # 4 5 6 0 -> 8 9 0 7        4 5 6 -> 8 9 7 0
    # 7 8 9 0    0 0 0 0        7 8 9    2 3 1 0
    # 0 0 0 0    2 3 0 1                 0 0 0 0
    np.testing.assert_array_equal(before[:2], [[5, 6, 8, 9], [0, 4, 0, 7]])
    np.testing.assert_array_equal(before[2:], [[0, 0, 2, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(after[:2], [[5, 6, 8, 9], [4, 0, 7, 0]])
    np.testing.assert_array_equal(after[2:], [[2, 3, 0, 0], [1, 0, 0, 0]])


def test_windows_are_the_squares_of_the_grid():
    x = grid_of_numbers(4, 6)
    windows = rearrange(np.asarray(to_windows(x, 2, 0)), "(b w n) 1 -> b w n", b=2, n=4)
    np.testing.assert_array_equal(windows[1, 4], [24 + 14, 24 + 15, 24 + 20, 24 + 21])


def test_shifted_windows_start_at_the_shift_and_wrap_around():
    windows = np.asarray(to_windows(grid_of_numbers(4, 4)[:1], 2, 1)).reshape(4, 4)
    np.testing.assert_array_equal(windows[0], [5, 6, 9, 10])
    np.testing.assert_array_equal(windows[3], [15, 12, 3, 0])


def test_incomplete_windows_are_zero_padded():
    x = np.ones((1, 3, 5, 2), np.float32)
    windows = to_windows(x, 4, 0)
    assert padded((3, 5), 4) == (4, 8)
    assert windows.shape == (32, 2)
    assert windows.sum() == x.sum()


def test_a_window_as_large_as_the_grid_is_not_shifted():
    assert fit_window((6, 6), 6, 3) == (6, 0)
    assert fit_window((6, 8), 7, 3) == (6, 0)
    assert fit_window((8, 9), 7, 3) == (7, 3)


def test_shift_mask_of_a_4x4_grid_matches_the_official_one():
    mask = shift_mask((4, 4), 2, 1)
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    np.testing.assert_array_equal(mask[1, 0], [0, -100, 0, -100])
    np.testing.assert_array_equal(mask[1, 1], [-100, 0, -100, 0])
    np.testing.assert_array_equal(mask[3], np.where(np.eye(4), 0, -100))
    assert shift_mask((4, 4), 2, 0) is None


@pytest.mark.parametrize("grid", [(8, 12), (7, 10)])
def test_shift_mask_separates_exactly_what_was_apart_before_the_shift(grid):
    window, shift = 4, 2
    height, width = padded(grid, window)
    y, x = np.mgrid[:height, :width].astype(np.float32)[:, None, ..., None]
    # Positions after the shift; tokens that wrapped around are far from the others.
    ys, xs = (np.asarray(to_windows(v, window, shift)).reshape(-1, 16) for v in (y, x))
    near = (np.abs(ys[:, :, None] - ys[:, None]) < window) & (
        np.abs(xs[:, :, None] - xs[:, None]) < window
    )
    np.testing.assert_array_equal(shift_mask(grid, window, shift) == 0, near)


def test_offsets_of_a_6x6_window_match_the_official_ones():
    index = relative_offsets(6, 6)
    assert (index[0, 0], index[0, 35], index[35, 0]) == (60, 0, 120)
    assert index.sum() == 77_760
    np.testing.assert_array_equal(
        relative_offsets(2, 2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((6, 6), 6, 0),
        ((12, 12), 6, 0),
        ((12, 12), 6, 3),
        ((4, 8), 4, 1),
        ((9, 6), 3, 1),
    ],
)
def test_attention_in_bands_equals_attention_in_windows(grid, window, shift):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *grid, 3 * 2 * 4)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(2, window**2, window**2)), jnp.float32)

    def attend(x, bias, mask):
        tokens = bias.shape[1]
        batch = len(x) // tokens
        return attention(x, None, bias, mask, batch=batch, num_heads=2, tokens=tokens)

    cut = windows.to_windows(x, window, shift)
    out = attend(cut, bias, windows.shift_mask(grid, window, shift))
    expected = windows.from_windows(out, grid, window, shift)

    assert windows.fits_bands(grid, window, window * grid[1])
    assert not windows.fits_bands(grid, window, window * grid[1] - 1)
    bias = windows.bias_at(bias, windows.band_places(grid, window, shift))
    mask = windows.band_mask(grid, window, shift)
    rolled = windows.roll_grids(x.reshape(-1, x.shape[-1]), grid, shift)
    out = attend(rolled, bias, mask)
    ours = windows.roll_grids(out, grid, -shift).reshape(expected.shape)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rolling_grids_moves_rows_without_rounding(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), dtype)
    rolled = windows.roll_grids(x.reshape(-1, 3), (5, 4), 2)
    assert rolled.dtype == dtype
    expected = jnp.roll(x, -2, 1).reshape(-1, 3)
    np.testing.assert_array_equal(rolled, expected)
