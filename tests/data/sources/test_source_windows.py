"""Windows: they cover an image, overlap, and each pixel belongs to one of them."""

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.windows import WindowSource, tile


@pytest.mark.parametrize(
    ("shape", "count"), [((8, 12), 1), ((5, 3), 1), ((9, 12), 2), ((20, 40), 4 * 5)]
)
def test_windows_cover_an_image_and_every_pixel_belongs_to_one(shape, count):
    size = (8, 12)
    windows = tile(shape, size)
    assert len(windows) == count
    owners = np.zeros(shape, int)
    for window in windows:
        owners[window.rows, window.columns] += 1
        rows, columns = window.own()
        assert 0 <= rows.start < rows.stop <= size[0]
        assert 0 <= columns.start < columns.stop <= size[1]
        assert window.top + size[0] <= max(shape[0], size[0])
    assert (owners == 1).all()


def test_a_window_has_its_own_pixels_at_least_a_sixth_from_its_inner_edges():
    length, side = 100, 30
    windows = tile((side, length), (side, side))
    for window in windows:
        columns = window.own()[1]
        assert window.left == 0 or columns.start >= side // 6
        assert window.left + side == length or columns.stop <= side - side // 6


def source_of(mask):
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30, 1)
    source = as_source([{"image": image, "mask": mask, "path": "a.png"}])
    windows = [(0, window) for window in tile((20, 30), (12, 16))]
    return image, WindowSource(source, windows, (12, 16), Decoding(1), (7,), 0, 255)


def test_windows_hold_their_pixels_and_masks_of_their_own():
    mask = np.arange(20 * 30).reshape(20, 30) % 200
    image, source = source_of(mask)
    found = np.full((20, 30), -1)
    for (_, window), row in zip(source.windows, source, strict=True):
        top, left = window.top, window.left
        np.testing.assert_array_equal(
            row["image"], image[top : top + 12, left : left + 16]
        )
        own = row["mask"] != 255
        part = found[top : top + 12, left : left + 16]
        assert (part[own] == -1).all()
        part[own] = row["mask"][own]
    np.testing.assert_array_equal(found, mask)


def test_smaller_images_are_padded():
    image = np.ones((5, 6, 2), np.uint8)
    cut = tile((5, 6), (8, 8))[0].cut(image, (8, 8), (3, 4))
    assert (cut[:5, :6] == 1).all()
    assert (cut[5:] == (3, 4)).all()
    assert (cut[:, 6:] == (3, 4)).all()


def test_a_wrong_mask_names_the_file_of_its_image():
    _, source = source_of(np.zeros((3, 3), np.uint8))
    with pytest.raises(BadImage, match="has 3x3 pixels") as raised:
        source[0]
    assert raised.value.filename == "a.png"
