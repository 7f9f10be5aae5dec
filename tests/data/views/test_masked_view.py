"""Images and masks: the same crop, indices as they are, and masks that are wrong."""

import numpy as np
import pytest
from PIL import Image

from simmim_jax.config import schema
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.codecs.masks import decode_mask
from simmim_jax.errors import UserError
from simmim_jax.tasks.views import eval_view, train_view
from tests.images import encoded, npy

LEVELS = np.arange(48, dtype=np.uint8).reshape(6, 8)


def palette_png(indices):
    image = Image.fromarray(indices, mode="P")
    image.putpalette([(53 * i) % 256 for i in range(768)])
    return encoded(image)


def data(**fields):
    fields = {"image_size": (12, 16), "channels": 1, "dtype": "uint8"} | fields
    return schema.SegmentData(**fields)


@pytest.mark.parametrize(
    "mask",
    [
        LEVELS,
        npy(LEVELS.astype(np.int64)),
        palette_png(LEVELS),
        encoded(Image.fromarray(LEVELS)),
        encoded(Image.fromarray(LEVELS.astype(np.uint16))),
        encoded(Image.fromarray(LEVELS), "TIFF"),
        encoded(Image.fromarray(LEVELS.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(LEVELS), "BMP"),
    ],
    ids=[
        *("array", "npy", "palette", "grey", "grey 16 bits"),
        *("TIFF", "TIFF 16 bits", "BMP"),
    ],
)
def test_masks_hold_indices(mask):
    decoded = decode_mask(mask)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded[:, :, 0], LEVELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_indices_are_not_stretched(bits):
    indices = (LEVELS % 2**bits).astype(np.uint8)
    palette = Image.fromarray(indices, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255] * 4)
    np.testing.assert_array_equal(
        decode_mask(encoded(palette, bits=bits))[:, :, 0], indices
    )
    if bits == 1:  # the only one of these that Pillow writes
        grey = Image.fromarray(indices.astype(bool))
        np.testing.assert_array_equal(decode_mask(encoded(grey))[:, :, 0], indices)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (encoded(Image.new("RGB", (8, 6))), r"uint8 \[6, 8, 3\]: expected one channel"),
        (encoded(Image.new("L", (8, 6)), "JPEG"), "is a JPEG, which alters values"),
        (LEVELS.astype(np.float32), r"float32 \[6, 8, 1\]: expected one channel"),
        (LEVELS.astype(np.int16) - 1, "has values from -1 to 46"),
        (LEVELS.astype(np.int32) * 2000, "to 94000: expected indices from 0 to 65535"),
    ],
    ids=["colours", "JPEG", "fractions", "negative", "large"],
)
def test_other_masks_are_bad_images(mask, says):
    with pytest.raises(BadImage, match=says) as raised:
        decode_mask(mask)
    assert raised.value.reason == "wrong mask"


@pytest.mark.parametrize("crop_scale", [(0.1, 0.9), ()])
def test_a_random_crop_takes_the_same_pixels_of_both(crop_scale):
    # The nearest pixel of both: what is cropped is the mask itself.
    indices = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    view = train_view(
        data(crop_scale=crop_scale, interpolation="nearest", dtype="uint16")
    )
    seen = set()
    for seed in range(5):
        row = view(
            {"image": indices[..., None], "mask": indices, "label": -1},
            np.random.default_rng(seed),
        )
        np.testing.assert_array_equal(row["image"][..., 0], row["mask"])
        assert row["mask"].shape == (12, 16)
        seen.add(int(row["mask"][0, 0]))
    assert len(seen) == (5 if crop_scale else 1)


def test_evaluation_resizes_both_and_pads_masks_with_what_does_not_count():
    square = np.full((20, 20), 3, np.uint8)
    example = {"image": square[..., None] * 10, "mask": square, "label": -1}
    rng = np.random.default_rng(0)
    row = eval_view(data(mean=(0.5,), std=(1.0,)))(example, rng)
    np.testing.assert_array_equal(row["mask"], np.full((12, 16), 3))
    padding = data(mean=(0.5,), std=(1.0,), eval_fit="pad", ignore_index=99)
    row = eval_view(padding)(example, rng)
    assert (row["mask"][:, 2:14] == 3).all()
    assert (row["mask"][:, [0, 1, 14, 15]] == 99).all()
    assert (row["image"][:, [0, 1, 14, 15]] == 128).all()


def test_masks_of_another_size_or_with_other_classes_are_bad():
    image, rng = np.zeros((20, 30, 1), np.uint8), np.random.default_rng(0)
    view = eval_view(data(num_classes=3, mean=(0.5,), std=(1.0,)))
    with pytest.raises(BadImage, match="has 30x20 pixels, its image 20x30"):
        view({"image": image, "mask": np.zeros((30, 20), np.uint8)}, rng)
    mask = np.full((20, 30), 255, np.uint8)  # ignored
    assert (view({"image": image, "mask": mask, "label": -1}, rng)["mask"] == 255).all()
    mask[0, 0] = 3
    with pytest.raises(BadImage, match="value 3: expected classes below 3, or 255"):
        view({"image": image, "mask": mask}, rng)


def test_masks_are_for_segmentation_alone():
    with pytest.raises(UserError, match=r"'masks' is for config\.mode='segment'"):
        train_view(schema.Data(view="masks"))
