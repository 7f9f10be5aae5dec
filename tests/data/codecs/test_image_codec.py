"""Decode every kind of image file that is found in the wild."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps

from simmim_jax.data.codecs import image as image_codec
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.image import BadImage, decode_jpeg, read_jpeg_header
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.views.crop import random_crop
from simmim_jax.errors import UserError
from tests.images import PHOTOS, encoded, gradient

REASONS = {"empty", "not an image", "truncated", "corrupt", "too large"}


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_lossless_files_decode_to_their_pixels(format):
    pixels = gradient(20, 30, 3)
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(pixels), format), Decoding(3)), pixels
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_decode_to_nearly_their_pixels(format):
    pixels = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    decoded = decode(encoded(Image.fromarray(pixels), format, quality=95), Decoding(3))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - pixels).max() <= 4


def test_gray_has_one_channel_and_converts_both_ways():
    gray = gradient(8, 9, 1)
    data = encoded(Image.fromarray(gray[..., 0]))
    np.testing.assert_array_equal(decode(data, Decoding(1)), gray)
    np.testing.assert_array_equal(decode(data, Decoding(3)), np.repeat(gray, 3, axis=2))
    white = encoded(Image.new("RGB", (9, 8), "white"))
    np.testing.assert_array_equal(decode(white, Decoding(1)), np.full((8, 9, 1), 255))


def test_exif_orientation_turns_the_image_upright():
    image = Image.new("RGB", (30, 20), "black")
    image.paste("red", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees clockwise to see it upright.
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95), Decoding(3))
    assert upright.shape == (30, 20, 3)
    assert upright[5, 10, 0] > 200  # The left half is now on top.
    assert upright[25, 10, 0] < 50


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "CMYK"])
def test_broken_exif_leaves_the_image_as_it_is(format):
    image = Image.new("RGB", (30, 20), "white")
    if format == "CMYK":
        file = encoded(image.convert("CMYK"), "JPEG", exif=b"Exif\0\0garbage")
    elif format == "PNG":  # Pillow refuses to write it.
        file = encoded(image)
        file = file[:33] + png_chunk(b"eXIf", b"garbage") + file[33:]
    else:
        file = encoded(image, format, exif=b"Exif\0\0garbage")
    assert b"garbage" in file
    assert decode(file, Decoding(3)).shape == (20, 30, 3)
    assert decode(file, Decoding(3)).min() > 250


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    decoded = decode(encoded(image), Decoding(3))
    assert decoded[2, 1].tolist() == [255, 255, 255]
    assert decoded[0, 0].tolist() == [255, 0, 0]
    gray_alpha = Image.new("LA", (4, 4), (0, 0))
    assert (decode(encoded(gray_alpha), Decoding(1)) == 255).all()


def test_palette_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(image), Decoding(3))[0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(image, transparency=1), Decoding(3))[0, 0].tolist() == [
        255,
        255,
        255,
    ]


def test_cmyk_and_1_bit():
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decode(cmyk, Decoding(3))[4, 4].tolist()
    assert red > 200
    assert max(green, blue) < 60
    assert (decode(encoded(Image.new("1", (4, 4), 1)), Decoding(1)) == 255).all()


def test_raw_pixels_pass_through_untouched():
    pixels = gradient(5, 6, 4)
    assert decode(pixels, Decoding(4)) is pixels
    assert decode(pixels[..., 0], Decoding(1)).shape == (5, 6, 1)


def test_errors_say_what_was_expected():
    with pytest.raises(
        UserError, match=r"uint8 \[5, 6, 4\]: expected \[h, w, 3\].*channels=3"
    ):
        decode(gradient(5, 6, 4), Decoding(3))
    with pytest.raises(UserError, match=r"complex64: expected integers"):
        decode(gradient(5, 6, 3).astype(np.complex64), Decoding(3))
    with pytest.raises(UserError, match=r"uint8 \[4, 4, 3\]: expected \[h, w, 4\]"):
        decode(encoded(Image.new("RGB", (4, 4))), Decoding(4))
    with pytest.raises(BadImage, match=r"9 bytes starting with b'not an i'.*JPEG"):
        decode(b"not an im", Decoding(3))
    truncated = encoded(Image.fromarray(gradient(64, 64, 3)), "JPEG")[:-400]
    with pytest.raises(BadImage, match=r"truncated.*Remove or replace"):
        decode(truncated, Decoding(3))


# ---- Rare files ----------------------------------------------------------------------


def test_cmyk_and_ycck_photographs_keep_their_colours():
    photo = Image.open(PHOTOS[0]).resize((64, 48))
    cmyk = photo.convert("CMYK")
    expected = np.asarray(cmyk.convert("RGB")).astype(int)
    file = encoded(cmyk, "JPEG", quality=95, subsampling=0)
    assert read_jpeg_header(file) is None  # Pillow decodes it
    assert np.abs(decode(file, Decoding(3)) - expected).mean() < 4
    # Transform 2 in the Adobe segment that Pillow writes means YCCK.
    adobe = file.index(b"Adobe")
    assert file[adobe + 11] == 0
    ycck = file[: adobe + 11] + b"\x02" + file[adobe + 12 :]
    with Image.open(io.BytesIO(ycck)) as image:
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(ycck, Decoding(3)), shown)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_decode_to_their_first_frame(format):
    pictures = [Image.new("RGB", (16, 12), color) for color in ("red", "blue", "lime")]
    file = encoded(
        pictures[0], format, save_all=True, append_images=pictures[1:], lossless=True
    )
    assert (decode(file, Decoding(3)) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_smallest_and_longest_images(size, format):
    image = decode(encoded(Image.new("RGB", size, "red"), format), Decoding(3))
    assert image.shape == (size[1], size[0], 3)
    assert image[0, 0, 0] > 250


def test_the_content_counts_not_the_file_name():
    png = encoded(Image.open(PHOTOS[0]).resize((40, 30)))
    assert decode(png, Decoding(3)).shape == (30, 40, 3)


@pytest.mark.parametrize("format", ["TIFF", "PPM", "JPEG2000", "GIF", "AVIF"])
def test_formats_that_are_often_named_jpg(format):
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    shown = decode(encoded(image, format), Decoding(3)).astype(int)
    assert np.abs(shown - (200, 100, 50)).max() < 8


def test_programs_in_files_are_not_run(monkeypatch, tmp_path):
    """Pillow runs Ghostscript on the PostScript in an EPS file."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # searched again
    with pytest.raises(BadImage, match="expected JPEG, PNG") as raised:
        decode(encoded(Image.new("RGB", (16, 16)), "EPS"), Decoding(3))
    assert raised.value.reason == "not an image"
    assert not (tmp_path / "was_run").exists()


def test_decompression_bombs_are_refused_before_they_are_decoded():
    # Headers of 65,500 x 65,500 pixels; the data is that of 16 x 16.
    jpeg = bytearray(encoded(Image.new("RGB", (16, 16), "white"), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    png = bytearray(encoded(Image.new("RGB", (16, 16), "white")))
    png[16:24] = struct.pack(">II", 65_500, 65_500)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    for bomb in (bytes(jpeg), bytes(png)):
        with pytest.raises(BadImage, match=r"65,500 x|exceeds") as raised:
            decode(bomb, Decoding(3))
        assert raised.value.reason == "too large"


def test_reasons():
    photo = encoded(Image.open(PHOTOS[0]).resize((96, 64)), "JPEG")
    png = encoded(Image.open(PHOTOS[0]).resize((96, 64)))
    damaged = png[:5000] + b"\0" * 200 + png[5200:]
    cases = {
        b"": "empty",
        b"once upon a time": "not an image",
        b"\xff\xd8" + b"no picture": "not an image",
        photo[: len(photo) // 2]: "truncated",
        png[: len(png) // 2]: "truncated",
        png[:100]: "truncated",  # within its header
        damaged: "corrupt",
    }
    for data, reason in cases.items():
        with pytest.raises(BadImage) as raised:
            decode(data, Decoding(3))
        assert raised.value.reason == reason, data[:8]


# ---- Limits --------------------------------------------------------------------------

SIDE = 64  # of images that are just small enough for a limit


@pytest.mark.parametrize(
    ("format", "share", "options"),
    [
        ("JPEG", 1, {}),
        ("PNG", 1, {}),
        ("BMP", 1, {}),
        ("GIF", 1, {}),
        ("TIFF", 1, {}),
        ("TIFF", 1, {"compression": "tiff_lzw"}),
        ("WEBP", 2, {}),
        ("AVIF", 2, {}),
        ("JPEG2000", 2, {}),
    ],
)
def test_each_encoding_has_a_share_of_the_pixels(format, share, options):
    data = encoded(Image.new("RGB", (SIDE, SIDE), "red"), format, **options)
    limit = share * SIDE**2
    assert decode(data, Decoding(3, max_pixels=limit)).shape == (SIDE, SIDE, 3)
    with pytest.raises(BadImage, match=r"64 x 64 pixels.*max_image_pixels=") as raised:
        decode(data, Decoding(3, max_pixels=limit - 1))
    assert raised.value.reason == "too large"
    assert "--config.data.max_image_pixels" in str(raised.value)


def test_decoders_in_python_have_a_small_share():
    values = b" ".join([b"7"] * 3 * SIDE**2)
    text = b"P3 %d %d 255 " % (SIDE, SIDE) + values
    scaled = b"P6 %d %d 254\n" % (SIDE, SIDE) + bytes(3 * SIDE**2)
    runs = b"".join([bytes([SIDE, 1, 0, 0])] * SIDE) + b"\0\1"
    palette = bytes(4 * 256)
    at = 54 + len(palette)
    bmp = b"BM" + struct.pack("<IHHI", at + len(runs), 0, 0, at)
    bmp += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(runs), 0, 0, 256, 0)
    for data in (text, scaled, bmp + palette + runs):
        assert decode(data, Decoding(3, max_pixels=32 * SIDE**2)).shape == (
            SIDE,
            SIDE,
            3,
        )
        with pytest.raises(BadImage, match=r"64 x 64"):
            decode(data, Decoding(3, max_pixels=32 * SIDE**2 - 1))


def test_the_size_of_a_file_counts_too():
    """JPEG 2000 and AVIF take as long for a byte as others for several pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG2000")
    assert len(data) > 2 * SIDE**2
    with pytest.raises(BadImage, match=rf"in {len(data):,} bytes: expected at most"):
        decode(data, Decoding(3, max_pixels=4 * len(data) - 4))
    assert decode(data, Decoding(3, max_pixels=4 * len(data))).shape == noise.shape


def test_a_jpeg_may_not_have_too_many_scans():
    side = 256
    for mode in ("RGB", "CMYK"):
        data = encoded(Image.new(mode, (side, side)), "JPEG", progressive=True)
        scans, last = data.count(b"\xff\xda"), data.rindex(b"\xff\xda")
        many = data[:-2] + data[last:-2] * 20 + data[-2:]  # the last one, repeated
        assert decode(data, Decoding(3, max_pixels=side**2)).shape == (side, side, 3)
        with pytest.raises(BadImage, match=rf"{scans + 20} scans: expected at most 20"):
            decode(many, Decoding(3, max_pixels=side**2))
        assert decode(many, Decoding(3, max_pixels=4 * side**2)).shape == (
            side,
            side,
            3,
        )


def test_a_jpeg_with_one_scan_is_not_searched_for_more():
    """Other parts of it, such as a thumbnail, may look like a scan."""
    photo, comment = Image.open(PHOTOS[0]), b"\xff\xda" * 200
    data = encoded(photo.resize((SIDE, SIDE)), "JPEG", comment=comment)
    assert data.count(b"\xff\xda") > 200
    assert decode(data, Decoding(3, max_pixels=SIDE**2)).shape == (SIDE, SIDE, 3)


def test_tiles_of_a_tiff_may_not_be_larger_than_an_image():
    tags = {256: SIDE, 257: SIDE, 258: 8, 259: 5, 262: 1, 322: 128, 323: 128}
    tags |= {324: 8, 325: 0}  # where the tile is, and how long
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(BadImage, match=r"tiles of a TIFF.*128 x 128") as raised:
        decode(file, Decoding(1, max_pixels=SIDE**2))
    assert raised.value.reason == "too large"
    with pytest.raises(BadImage, match="not an image that Pillow can read"):
        decode(file, Decoding(1))  # it has no pixels


def test_large_images_are_converted_band_by_band(monkeypatch):
    images = [
        Image.open(PHOTOS[0]).resize((50, 41)),
        Image.open(PHOTOS[0]).resize((50, 41)).convert("RGBA"),
        Image.open(PHOTOS[0]).resize((50, 41)).convert("P"),
        Image.fromarray(gradient(41, 50, 1)[..., 0].astype(np.uint16) * 200),
        Image.open(PHOTOS[0]).resize((50, 41)).convert("1"),
    ]
    images[1].putalpha(Image.linear_gradient("L").resize((50, 41)))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(image, "PNG", exif=exif) for image in images]
    files.append(encoded(images[2], "PNG", transparency=3))
    whole = [decode(file, Decoding(channels)) for file in files for channels in (1, 3)]
    monkeypatch.setattr(image_codec, "_BAND", 333)
    bands = [decode(file, Decoding(channels)) for file in files for channels in (1, 3)]
    for expected, got in zip(whole, bands, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert whole[0].shape == (50, 41, 1)


# ---- JPEG ----------------------------------------------------------------------------


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_a_photograph_decodes_to_the_pixels_of_pillow(photo):
    data = photo.read_bytes()
    with Image.open(photo) as image:
        np.testing.assert_array_equal(decode(data, Decoding(3)), np.asarray(image))
        gray = decode(data, Decoding(1))[..., 0].astype(int) - np.asarray(
            image.convert("L")
        )
    # The JPEG's own luma differs from Pillow's where a colour was clipped.
    assert np.abs(gray).max() <= 6
    assert np.abs(gray).mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [1, 4])
def test_every_orientation_is_turned_as_by_pillow(orientation, reduction):
    photo = Image.open(PHOTOS[1]).crop((40, 30, 295, 201))  # odd sides
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, "JPEG", exif=exif, quality=95, subsampling=0)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    jpeg = read_jpeg_header(data)
    assert jpeg.shape == upright.size[::-1]
    decoded = decode_jpeg(data, jpeg, 3, reduction)
    if reduction == 1:
        np.testing.assert_array_equal(decoded, np.asarray(upright))
    else:
        assert decoded.shape == (*(-(-side // 4) for side in jpeg.shape), 3)
        means = np.asarray(upright.reduce(4)).astype(int)
        assert np.abs(decoded - means)[1:-1, 1:-1].mean() < 4


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_is_close_to_means_of_its_pixels(reduction):
    data = PHOTOS[0].read_bytes()
    decoded = decode_jpeg(data, read_jpeg_header(data), 3, reduction)
    with Image.open(PHOTOS[0]) as image:
        means = np.asarray(image.reduce(reduction)).astype(int)
    assert decoded.shape == means.shape
    assert np.abs(decoded - means).mean() < 3


# ---- Fuzz ----------------------------------------------------------------------------

SEEDS = [
    encoded(Image.open(PHOTOS[0]).resize((75, 50)), format, **options)
    for format, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
    )
]
EDIT = st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(EDIT, min_size=1, max_size=8), st.booleans())
def test_damaged_files_decode_or_are_bad_images(seed, edits, cut):
    data = seed
    for place, new, dropped in edits:
        # Half of the edits hit the first 200 bytes, where the headers are.
        at = int(2 * place * 200) if place < 0.5 else int((place - 0.5) * 2 * len(data))
        data = data[:at] + new + data[at + dropped :]
    if cut:
        data = data[: int(edits[0][0] * len(data))]
    for read in (
        lambda: decode(data, Decoding(3)),
        lambda: random_crop(
            data,
            Decoding(3),
            size=(16, 24),
            rng=np.random.default_rng(0),
            scale=(0.67, 1),
            ratio=(3 / 4, 4 / 3),
            interpolation="bilinear",
            fast=True,
        ),
    ):
        try:
            image = read()
        except BadImage as error:
            reason = error.reason
        else:
            reason = None
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
        assert reason in (None, *REASONS)
