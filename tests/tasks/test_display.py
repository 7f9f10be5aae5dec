"""Arrays of any number of bands, as pictures show them."""

import dataclasses

import numpy as np
import tiny_config

from simmim_jax.tasks.display import NO_DATA, displayed, displayed_masks


def data(channels, **fields):
    """Fields of resolved values, whose mean is 100 and deviation 10."""
    given = {
        "channels": channels,
        "dtype": "float32",
        "mean": (100.0,) * channels,
        "std": (10.0,) * channels,
    }
    config = tiny_config.typed("pretrain").data
    return dataclasses.replace(config, **given | fields)


def test_photographs_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    photos = data(3, dtype="uint8", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert displayed(photos, images) is images


def test_measured_values_are_stretched_from_two_deviations_below_to_above():
    values = np.array([70, 80, 100, 110, 120, 130], np.int16).reshape(1, 2, 3, 1)
    found = displayed(data(2, dtype="int16"), values.repeat(2, axis=3))
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [0, 0, 128, 191, 255, 255]
    window = data(1, dtype="int16", normalization="range", clip=(90.0, 110.0))
    assert displayed(window, values).ravel().tolist() == [0, 0, 128, 255, 255, 255]


def test_bands_are_chosen_in_order():
    values = np.full((1, 2, 2, 13), 100, np.uint16)
    values[..., 7], values[..., 2] = 120, 80
    colours = displayed(data(13, dtype="uint16", display_bands=(7, 3, 2)), values)
    assert colours[0, 0, 0].tolist() == [255, 128, 0]


def test_a_single_band_has_colours_whose_steps_look_equal():
    values = np.array([70, 100, 130], np.int16).reshape(1, 1, 3, 1)
    found = displayed(data(1, dtype="int16"), values)
    # The ends and the middle of matplotlib 3.10's viridis.
    assert found[0, 0].tolist() == [[68, 1, 84], [32, 144, 140], [253, 231, 36]]
    chosen = displayed(
        data(13, dtype="int16", display_bands=(7,)), values.repeat(13, axis=3)
    )
    np.testing.assert_array_equal(chosen, found)
    text = data(1, dtype="int16", view="text")
    assert displayed(text, values).shape == (1, 1, 3, 1)


def test_all_bands_stand_side_by_side_with_their_masks():
    values = np.full((2, 4, 6, 5), 100, np.uint16)
    values[..., 3] = 120
    all_bands = data(5, dtype="uint16", display_bands=(0, 1, 2, 3, 4))
    sheet = displayed(all_bands, values)
    assert sheet.shape == (2, 2 * 4, 3 * 6, 1)
    assert (sheet[:, 4:, :6] == 255).all()  # the fourth
    assert (sheet[:, :4] == 128).all()
    masks = np.zeros((2, 4, 6), bool)
    masks[:, 0, 1] = True
    tiled = displayed_masks(all_bands, masks)
    assert tiled.shape == (2, 8, 18)
    assert tiled[:, 4, 7].all()
    assert tiled.sum() == 2 * 5  # none on the empty cell
    np.testing.assert_array_equal(displayed_masks(data(3), masks), masks)


def test_pixels_without_data_have_a_colour_of_their_own():
    values = np.full((1, 2, 2, 2), 100, np.float32)
    values[0, 0, 1, 1] = np.nan
    found = displayed(data(2), values)
    assert tuple(found[0, 0, 1]) == NO_DATA
    assert (found[0, 1] == 128).all()
    # A reconstruction of such images has the same shape.
    assert displayed(data(2), np.full((1, 2, 2, 2), 100, np.float32)).shape[-1] == 3
    marked = data(1, dtype="int16", nodata=(-1.0,))
    found = displayed(marked, np.array([-1, 100], np.int16).reshape(1, 1, 2, 1))
    assert tuple(found[0, 0, 0]) == NO_DATA
