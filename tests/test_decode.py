"""Decoding of every kind of file that turns up in image folders, and the crops."""

import io

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.decode import decode, random_resized_crop, resize_center_crop


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(height: int, width: int, channels: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [(x * (c + 1) + y * 3) % 256 for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


# ---- decode --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_lossless_files_decode_to_their_pixels(format):
    pixels = gradient(20, 30, 3)
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(pixels), format), 3), pixels
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_decode_to_nearly_their_pixels(format):
    pixels = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    decoded = decode(encoded(Image.fromarray(pixels), format, quality=95), 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - pixels).max() <= 4


def test_gray_has_one_channel_and_converts_both_ways():
    gray = gradient(8, 9, 1)
    data = encoded(Image.fromarray(gray[..., 0]))
    np.testing.assert_array_equal(decode(data, 1), gray)
    np.testing.assert_array_equal(decode(data, 3), np.repeat(gray, 3, axis=2))
    white = encoded(Image.new("RGB", (9, 8), "white"))
    np.testing.assert_array_equal(decode(white, 1), np.full((8, 9, 1), 255))


def test_exif_orientation_turns_the_image_upright():
    image = Image.new("RGB", (30, 20), "black")
    image.paste("red", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees clockwise to see it upright.
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95), 3)
    assert upright.shape == (30, 20, 3)
    assert upright[5, 10, 0] > 200  # What was left is on top.
    assert upright[25, 10, 0] < 50


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    decoded = decode(encoded(image), 3)
    assert decoded[2, 1].tolist() == [255, 255, 255]
    assert decoded[0, 0].tolist() == [255, 0, 0]
    gray_alpha = Image.new("LA", (4, 4), (0, 0))
    assert (decode(encoded(gray_alpha), 1) == 255).all()


def test_palette_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(image), 3)[0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(image, transparency=1), 3)[0, 0].tolist() == [255, 255, 255]


def test_16_bit_gray_keeps_its_upper_byte():
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values)), 1)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 255]


def test_cmyk_and_1_bit():
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decode(cmyk, 3)[4, 4].tolist()
    assert red > 200
    assert max(green, blue) < 60
    assert (decode(encoded(Image.new("1", (4, 4), 1)), 1) == 255).all()


def test_raw_pixels_pass_through_untouched():
    pixels = gradient(5, 6, 4)
    assert decode(pixels, 4) is pixels
    assert decode(pixels[..., 0], 1).shape == (5, 6, 1)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"uint8\[5 6 4\].*expected uint8\[h w 3\]"):
        decode(gradient(5, 6, 4), 3)
    with pytest.raises(ValueError, match=r"float32.*expected uint8"):
        decode(gradient(5, 6, 3).astype(np.float32), 3)
    with pytest.raises(ValueError, match=r"channels=4.*raw uint8 arrays"):
        decode(encoded(Image.new("RGB", (4, 4))), 4)
    with pytest.raises(ValueError, match=r"9 bytes starting with b'not an i'.*JPEG"):
        decode(b"not an im", 3)
    truncated = encoded(Image.fromarray(gradient(64, 64, 3)), "JPEG")[:-400]
    with pytest.raises(ValueError, match=r"truncated.*Remove or replace"):
        decode(truncated, 3)


# ---- random_resized_crop -------------------------------------------------------------


def boxes_of(image_shape, scale, ratio, count=2000):
    """Find the boxes by cropping an image whose pixels are their own coordinates."""
    height, width = image_shape
    coordinates = np.zeros((height, width, 2), np.uint8)
    coordinates[..., 0], coordinates[..., 1] = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        # Resized to a size that no box has, so that every box is interpolated.
        crop = random_resized_crop(
            coordinates, (256, 256), rng, scale, ratio, "bilinear"
        )
        (top, left), (bottom, right) = crop[0, 0].tolist(), crop[-1, -1].tolist()
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
    crop = random_resized_crop(
        image, (10, 13), np.random.default_rng(0), (0.9, 1.0), (3 / 4, 4 / 3), "bicubic"
    )
    # The widest box of height 10 is round(10 * 4/3) = 13, in the middle of 200.
    np.testing.assert_array_equal(crop, image[:, 93:106])


def test_crop_is_the_plain_pillow_resize_of_the_box():
    image = gradient(40, 50, 3)
    whole = random_resized_crop(
        image, (16, 20), np.random.default_rng(0), (1, 1), (1.25, 1.25), "bicubic"
    )
    expected = Image.fromarray(image).resize((20, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(whole, np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels(channels):
    image = gradient(40, 50, channels)
    crops = [
        random_resized_crop(
            image[..., c],
            (24, 32),
            np.random.default_rng(1),
            (0.2, 1),
            (1, 1),
            "bicubic",
        )
        for c in np.split(np.arange(channels), channels)
    ]
    together = random_resized_crop(
        image, (24, 32), np.random.default_rng(1), (0.2, 1), (1, 1), "bicubic"
    )
    assert together.shape == (24, 32, channels)
    np.testing.assert_array_equal(together, np.concatenate(crops, axis=-1))


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
        crop = resize_center_crop(gradient(*shape, 1), (48, 96), 0.9, "bilinear")
        assert crop.shape == (48, 96, 1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_without_a_crop_the_whole_image_is_resized(size):
    image = gradient(40, 80, 3)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        resize_center_crop(image, size, 1.0, "bicubic"), np.asarray(expected)
    )


def test_an_image_of_the_right_size_is_returned_untouched():
    image = gradient(32, 32, 3)
    assert resize_center_crop(image, (32, 32), 1.0, "bicubic") is image


def test_wrong_options_are_named():
    image = gradient(8, 8, 3)
    with pytest.raises(ValueError, match=r"interpolation='cubic'.*'bicubic'"):
        resize_center_crop(image, (4, 4), 1.0, "cubic")
    with pytest.raises(ValueError, match=r"crop_fraction=1.5 must be in \(0, 1\]"):
        resize_center_crop(image, (4, 4), 1.5, "bicubic")
