"""The crops of training and evaluation: boxes, pixels, how far fast ones are off."""

import functools
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from simmim_jax.data.codecs import image as codec
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.views import crop as crops
from simmim_jax.data.views.crop import random_crop, resize_center_crop
from tests.images import PHOTOS, encoded, gradient

SIMMIM = {"scale": (0.67, 1.0), "ratio": (3 / 4, 4 / 3)}


def crop(data, size, seed=0, *, scale, ratio, interpolation="bilinear", fast=False):
    """A random crop; channels are those of an array, 3 of a file."""
    return random_crop(
        data,
        Decoding(data.shape[-1] if isinstance(data, np.ndarray) else 3),
        size=size,
        rng=np.random.default_rng(seed),
        scale=scale,
        ratio=ratio,
        interpolation=interpolation,
        fast=fast,
    )


# ---- Boxes ---------------------------------------------------------------------------


def boxes_of(image_shape, scale, ratio, count=2000):
    """Find the boxes by cropping an image whose pixels are their own coordinates."""
    height, width = image_shape
    coordinates = np.zeros((height, width, 2), np.uint8)
    coordinates[..., 0], coordinates[..., 1] = np.mgrid[:height, :width]
    boxes = []
    for seed in range(count):
        # Resized to a size that no box has, so that every box is interpolated.
        image = crop(coordinates, (256, 256), seed, scale=scale, ratio=ratio, fast=True)
        (top, left), (bottom, right) = image[0, 0].tolist(), image[-1, -1].tolist()
        boxes.append((top, left, bottom - top + 1, right - left + 1))
    return np.array(boxes)


def test_boxes_have_the_areas_and_proportions_asked_for():
    height, width = 200, 220
    top, left, box_height, box_width = boxes_of(
        (height, width), (0.1, 0.4), (3 / 4, 4 / 3), count=1000
    ).T
    area = box_height * box_width / (height * width)
    aspect = box_width / box_height
    assert 0.095 < area.min() < 0.12
    assert 0.38 < area.max() < 0.41
    assert area.mean() == pytest.approx(0.25, abs=0.01)  # Uniform.
    assert 0.73 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.36
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)  # Log-uniform.
    # Places are uniform over those that fit.
    assert (top / (height - box_height)).mean() == pytest.approx(0.5, abs=0.03)
    assert (left / (width - box_width)).mean() == pytest.approx(0.5, abs=0.03)
    assert top.min() == 0
    assert (left + box_width).max() == width


def test_images_too_long_for_any_box_are_cropped_in_the_middle():
    image = gradient(10, 200, 3)
    box = crop(image, (10, 13), scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    # The widest box of height 10 is round(10 * 4/3) = 13, in the middle of 200.
    np.testing.assert_array_equal(box, image[:, 93:106])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.2, 0.4), (3, 4)])
def test_no_box_is_empty(shape, ratio):
    image = np.full((*shape, 3), 200, np.uint8)
    box = crop(image, (8, 8), scale=(0.1, 0.2), ratio=ratio)
    assert (box == 200).all()


def test_crop_is_the_plain_pillow_resize_of_the_box():
    image = gradient(40, 50, 3)
    whole = crop(
        image, (16, 20), scale=(1, 1), ratio=(1.25, 1.25), interpolation="bicubic"
    )
    expected = Image.fromarray(image).resize((20, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(whole, np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("fast", [False, True])
def test_any_number_of_channels(channels, fast):
    image = gradient(40, 50, channels)
    options = {"scale": (0.2, 1), "ratio": (1, 1), "fast": fast, "seed": 1}
    together = crop(image, (24, 32), **options)
    assert together.shape == (24, 32, channels)
    for c in range(channels):
        alone = crop(image[..., c : c + 1], (24, 32), **options)
        np.testing.assert_array_equal(together[..., c : c + 1], alone)


def torchvision_box(height, width, scale, ratio, rng):
    """RandomResizedCrop.get_params as torchvision documents it."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    # Ten in a row that do not fit: the largest in the middle.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(200, 200), (180, 240)])
def test_boxes_are_distributed_as_those_of_torchvision(shape):
    ours = boxes_of(shape, **SIMMIM)
    rng = np.random.default_rng(1)
    theirs = np.array([torchvision_box(*shape, **SIMMIM, rng=rng) for _ in range(2000)])
    for side, name in enumerate(("top", "left", "height", "width")):
        distance = stats.ks_2samp(ours[:, side], theirs[:, side])
        assert distance.pvalue > 0.001, name


# ---- Fast crops ----------------------------------------------------------------------


@functools.cache
def photograph(index, size):
    """A JPEG of a photograph at a size."""
    image = Image.open(PHOTOS[index]).resize(size, Image.Resampling.BICUBIC)
    return encoded(image, "JPEG", quality=92)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (640, 427), (1200, 900), (2000, 1500), (240, 240)]
)
def test_fast_crops_are_close_to_exact_ones(index, size):
    data = photograph(index, size)
    for seed in range(4):
        exact = crop(data, (224, 224), seed, **SIMMIM).astype(int)
        fast = crop(data, (224, 224), seed, **SIMMIM, fast=True)
        error = np.abs(fast - exact)
        assert error.mean() < 1.3
        assert np.quantile(error, 0.999) <= 16
        # No shift: the error does not follow the slope of the image.
        slope = np.gradient(exact.mean(axis=2))
        for axis in (0, 1):
            shift = np.vdot((fast - exact).mean(axis=2), slope[axis])
            assert abs(shift / np.vdot(slope[axis], slope[axis])) < 0.02


def test_fast_crops_decode_large_photographs_at_a_fraction_of_their_size():
    sizes = []

    def spy(data, colors, **options):
        image = original(data, colors, **options)
        sizes.append(image.shape)
        return image

    original = codec.simplejpeg.decode_jpeg
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec.simplejpeg, "decode_jpeg", spy)
        for size in ((500, 375), (1200, 900), (2000, 1500)):
            crop(photograph(0, size), (224, 224), **SIMMIM, fast=True)
    assert sizes == [(375, 500, 3), (450, 600, 3), (375, 500, 3)]


@pytest.mark.parametrize("shrink", [1.0, 1.1, 1.3, 1.6, 2.0, 2.3, 2.66, 5.0])
def test_fast_arrays_are_close_to_exact_ones_whatever_the_shrink(shrink):
    side = round(84 * shrink)
    image = np.asarray(Image.open(PHOTOS[0]).crop((0, 0, side, side)))
    whole = {"scale": (1, 1), "ratio": (1, 1)}
    exact = crop(image, (84, 84), **whole).astype(int)
    fast = crop(image, (84, 84), **whole, fast=True)
    assert np.abs(fast - exact).mean() < 1.5
    if shrink in (1.0, 5.0):  # nothing to do, or Pillow's work
        np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("shrink", [0.7, 1.1, 1.6, 2.3])
def test_fast_crops_of_values_are_close_to_exact_ones(dtype, shrink):
    side = round(84 * shrink)
    photo = np.asarray(Image.open(PHOTOS[0]).crop((0, 0, side, side)))
    values = np.tile(photo.astype(np.float32) - 128, (1, 1, 43))[..., :129]
    if dtype == "uint16":
        values = 257 * (values + 128)
    image = values.astype(dtype)
    whole = {"scale": (1, 1), "ratio": (1, 1)}
    exact, fast = (crop(image, (84, 84), **whole, fast=fast) for fast in (0, 1))
    assert fast.dtype == dtype
    assert fast.shape == (84, 84, 129)  # OpenCV takes 128 at once
    error = np.abs(fast - exact.astype(np.float64)).mean()
    assert error < 0.025 * image.std()


def test_bicubic_crops_are_exact_but_for_a_reduced_jpeg():
    options = {**SIMMIM, "interpolation": "bicubic"}
    small, large = photograph(0, (400, 300)), photograph(0, (2000, 1500))
    np.testing.assert_array_equal(
        crop(small, (224, 224), **options, fast=True),
        crop(small, (224, 224), **options),
    )
    fast = crop(large, (224, 224), **options, fast=True).astype(int)
    assert 0 < np.abs(fast - crop(large, (224, 224), **options)).mean() < 2


def test_a_damaged_jpeg_that_pillow_reads_is_cropped_all_the_same():
    data = bytearray(photograph(0, (1200, 900)))
    data[-2000:-1990] = bytes(10)  # libjpeg warns, Pillow goes on
    exact = crop(bytes(data), (64, 64), **SIMMIM)
    fast = crop(bytes(data), (64, 64), **SIMMIM, fast=True)
    assert np.abs(fast - exact.astype(int)).mean() < 1.5


# ---- resize_center_crop --------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "resized"),
    [((375, 500), (256, 341)), ((500, 375), (341, 256)), ((100, 100), (256, 256))],
)
def test_evaluation_resizes_the_short_side_to_256_and_crops_224(shape, resized):
    image = gradient(*shape, 3)
    expected = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    np.testing.assert_array_equal(
        resize_center_crop(image, (224, 224), 224 / 256, "bicubic"),
        np.asarray(expected)[top : top + 224, left : left + 224],
    )


@pytest.mark.parametrize(
    ("size", "short"), [(64, 73), (192, 219), (224, 256), (256, 292), (384, 438)]
)
@pytest.mark.parametrize("shape", [(300, 300), (230, 301)])
def test_evaluation_resizes_by_the_official_rule(shape, size, short):
    image = gradient(*shape, 3)
    assert short == int(256 / 224 * size)
    # torchvision's Resize: the long side is cut down to a whole number.
    resized = [int(short * side / min(shape)) for side in shape]
    expected = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = (round((side - size) / 2) for side in resized)
    np.testing.assert_array_equal(
        resize_center_crop(image, (size, size), 224 / 256, "bicubic"),
        np.asarray(expected)[top : top + size, left : left + size],
    )


def test_crops_that_are_not_square_are_covered():
    for shape in ((30, 200), (200, 30), (64, 97)):
        image = resize_center_crop(gradient(*shape, 1), (48, 96), 0.9, "bilinear")
        assert image.shape == (48, 96, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_lines_are_evaluated_in_little_memory(channels):
    """Resized as a whole to 256 x 5,120,000 pixels, one would take 5 GB."""
    line = gradient(1, 20_000, channels)
    middle = resize_center_crop(line, (224, 224), 224 / 256, "bicubic")
    flat = resize_center_crop(line.transpose(1, 0, 2), (224, 224), 224 / 256, "bicubic")
    assert middle.shape == (224, 224, channels)
    # 256 pixels of the result are one of the line.
    assert np.abs(middle.astype(int) - line[0, 10_000]).max() <= 8
    np.testing.assert_array_equal(flat, middle.transpose(1, 0, 2))


@pytest.mark.parametrize("shape", [(40, 900), (901, 40)])
def test_the_middle_alone_is_nearly_what_is_cut_out_of_the_whole(shape, monkeypatch):
    image = np.asarray(Image.open(PHOTOS[0]).resize(shape[::-1]))
    expected = resize_center_crop(image, (56, 56), 0.875, "bicubic").astype(int)
    monkeypatch.setattr(crops, "_MAX_PIXELS_TO_CUT", 0)
    found = resize_center_crop(image, (56, 56), 0.875, "bicubic")
    error = np.abs(found - expected)
    assert error[2:-2, 2:-2].max() <= 1
    assert error.mean() < 1


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_without_a_crop_the_whole_image_is_resized(size):
    image = gradient(40, 80, 3)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        resize_center_crop(image, size, 1.0, "bicubic"), np.asarray(expected)
    )


def test_an_image_of_the_right_size_is_returned_untouched():
    image = gradient(32, 32, 3)
    assert np.shares_memory(resize_center_crop(image, (32, 32), 1.0, "bicubic"), image)


def test_wrong_options_are_named():
    image = gradient(8, 8, 3)
    with pytest.raises(ValueError, match=r"interpolation='cubic'.*'bicubic'"):
        resize_center_crop(image, (4, 4), 1.0, "cubic")
    with pytest.raises(ValueError, match=r"crop_fraction=1.5 must be in \(0, 1\]"):
        resize_center_crop(image, (4, 4), 1.5, "bicubic")


@pytest.mark.parametrize(
    ("fit", "resized", "top", "left"),
    [
        ("cover", (40, 60), 4, 14),  # official without a crop: (32, 32)
        ("squash", (40, 40), 4, 4),
        ("pad", (27, 40), 0, 4),
    ],
)
def test_how_evaluation_may_fit_an_image(fit, resized, top, left):
    image = gradient(50, 75, 3)
    found = resize_center_crop(
        image, (32, 32), 0.8, "bicubic", fit=fit, fill=(10, 20, 30)
    )
    expected = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
    expected = np.asarray(expected)[top : top + 32, left : left + 32]
    if fit == "pad":  # 5 rows are missing: 2 above, 3 below
        np.testing.assert_array_equal(found[[0, 1, 29, 30, 31], 5], [(10, 20, 30)] * 5)
        found = found[2:29]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("center", "top"), [("round", 2), ("floor", 1)])
def test_where_a_crop_begins_if_an_odd_number_of_rows_is_cut_off(center, top):
    image = gradient(35, 32, 3)
    found = resize_center_crop(
        image, (32, 32), 1.0, "bicubic", fit="cover", center=center
    )
    np.testing.assert_array_equal(found, image[top : top + 32])
