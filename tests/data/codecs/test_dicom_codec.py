"""Decode DICOM: values in their unit, colours, compressions, and damage.

Files are those that pydicom 3.0.2 comes with; values were read with it and pylibjpeg
2.1.0 (libjpeg 2.5.0, openjpeg 2.6.0, rle 2.2.0).
"""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import decode, read
from simmim_jax.errors import UserError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def data_of(name):
    return Path(get_testdata_file(name)).read_bytes()


def edited(name, **elements):
    """Return a file with other elements; None removes one."""
    dataset = pydicom.dcmread(get_testdata_file(name))
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        elif keyword == "TransferSyntaxUID":
            dataset.file_meta.TransferSyntaxUID = value
        elif keyword.startswith("PixelPadding"):
            dataset.add_new(
                keyword, "SS" if dataset.PixelRepresentation else "US", value
            )
        else:
            setattr(dataset, keyword, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


# ---- Grey ----------------------------------------------------------------------------


def test_ct_is_in_hounsfield_units():
    raster = read(data_of("CT_small.dcm"), Decoding())
    assert (raster.pixels.dtype, raster.pixels.shape) == (np.int16, (128, 128, 1))
    # Stored 128 to 2191, first 175; slope 1, intercept -1024, padding -2000.
    assert (raster.pixels.min(), raster.pixels.max()) == (-896, 1167)
    assert raster.pixels[0, 0, 0] == 175 - 1024
    assert raster.nodata == -2000 - 1024
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(raster.pixels[:, :, 0], expected)


def test_a_ct_window_is_a_range_of_values():
    # Centre 40, width 400.
    wanted = Decoding(1, value_range=(-160, 240))
    pixels = decode(data_of("CT_small.dcm"), wanted)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0, 0] == 0  # -849
    assert pixels.max() == 255
    hounsfield = decode(data_of("CT_small.dcm"), Decoding(1))
    assert set(pixels[hounsfield == 39].tolist()) == {127}


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
        *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"),
        *("MR_small_jpeg_ls_lossless.dcm", "MR_small_expb.dcm"),
    ],
)
def test_lossless_encodings_are_equal(name):
    pixels = decode(data_of(name), Decoding(1))
    assert pixels.dtype == np.int16
    assert pixels.dtype.isnative
    assert pixels[0, :3, 0].tolist() == [905, 1019, 1227]
    expected = decode(data_of("MR_small.dcm"), Decoding(1))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [
        ("693_J2KI.dcm", "int16", -3995, 1812),  # intercept -1024
        ("J2K_pixelrep_mismatch.dcm", "int16", -2000, 1896),  # 13 bits signed
        ("JPEG2000.dcm", "int16", -30, 245),
        ("JPGExtended.dcm", "uint16", 0, 264),  # JPEG of 12 bits
        ("JPEGLSNearLossless_08.dcm", "uint8", 0, 255),
        ("JPEGLSNearLossless_16.dcm", "uint16", 0, 65535),
        ("examples_overlay.dcm", "uint16", 0, 1123),  # 12 bits, an overlay beside them
        ("image_dfl.dcm", "uint8", 0, 255),  # deflated
        ("liver_1frame.dcm", "uint8", 0, 1),  # 1 bit
    ],
)
def test_depths_and_compressions(name, dtype, low, high):
    pixels = decode(data_of(name), Decoding(1))
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.dtype(dtype), low, high)


def test_other_slopes_become_float32():
    data = edited("CT_small.dcm", RescaleSlope="0.5", RescaleIntercept="-10")
    raster = read(data, Decoding(1))
    assert raster.pixels.dtype == np.float32
    assert raster.pixels[0, 0, 0] == 175 * 0.5 - 10
    assert raster.nodata is None


def test_intercepts_that_do_not_fit_16_bits_take_32():
    data = edited("CT_small.dcm", RescaleIntercept="40000")
    pixels = decode(data, Decoding(1))
    assert (pixels.dtype, pixels[0, 0, 0]) == (np.int32, 40175)


def test_a_dose_is_in_gray():
    pixels = decode(data_of("rtdose_1frame.dcm"), Decoding(1))
    assert pixels.dtype == np.float32
    assert pixels[0, 0, 0] == np.float32(1.249)  # stored 1249000, scaling 1e-6


def test_high_bits_are_masked_and_12_bits_are_signed():
    stored = np.array([0x0FFF, 0xF001, 0x0800], "<u2")
    data = edited(
        "CT_small.dcm",
        **{"Rows": 1, "Columns": 3, "BitsStored": 12, "HighBit": 11},
        **{"RescaleIntercept": None, "RescaleSlope": None},
        PixelData=stored.tobytes(),
    )
    assert decode(data, Decoding(1)).ravel().tolist() == [-1, 1, -2048]


# ---- Padding and MONOCHROME1 ---------------------------------------------------------


def test_padding_is_nodata():
    # CT_small has 175, 180, 166 at the start.
    data = edited("CT_small.dcm", PixelPaddingValue=175, PixelPaddingRangeLimit=180)
    raster = read(data, Decoding(1))
    assert raster.nodata == 175 - 1024
    assert raster.pixels[0, :3, 0].tolist() == [-849, -849, 166 - 1024]
    marked = read(data, Decoding(1, nodata=-2000))
    assert marked.pixels[0, :3, 0].tolist() == [-2000, -2000, 166 - 1024]
    scaled = edited("CT_small.dcm", PixelPaddingValue=175, RescaleSlope="2")
    pixels = decode(scaled, Decoding(1))
    assert np.isnan(pixels[0, 0, 0])
    assert pixels[0, 1, 0] == 180 * 2 - 1024


def test_padding_below_16_bits_stays_16_bits():
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    stored = dataset.pixel_array.copy()
    stored[0, 0] = -32768
    data = edited("CT_small.dcm", PixelPaddingValue=-32768, PixelData=stored.tobytes())
    raster = read(data, Decoding(1))
    assert (raster.pixels.dtype, raster.nodata) == (np.int16, -32768)
    assert raster.pixels[0, :2, 0].tolist() == [-32768, 180 - 1024]


def test_monochrome1_is_inverted_in_its_stored_range():
    plain = edited("examples_overlay.dcm", PhotometricInterpretation="MONOCHROME1")
    expected = decode(data_of("examples_overlay.dcm"), Decoding(1))
    inverted = decode(plain, Decoding(1))
    assert inverted.dtype == np.uint16
    np.testing.assert_array_equal(inverted, 4095 - expected)  # 12 bits
    signed = edited(
        "MR_small.dcm", PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=905
    )
    raster = read(signed, Decoding(1))
    assert raster.pixels[0, :2, 0].tolist() == [-906, -1020]  # -1 - 905, -1 - 1019
    assert raster.nodata == -906


def test_monochrome1_of_a_measurement_keeps_its_values():
    # The standard inverts what is shown, after slope and window (PS3.3 C.7.6.3.1.2).
    data = edited("CT_small.dcm", PhotometricInterpretation="MONOCHROME1")
    expected = decode(data_of("CT_small.dcm"), Decoding(1))
    np.testing.assert_array_equal(decode(data, Decoding(1)), expected)


# ---- Colours -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "place", "color"),
    [
        ("SC_rgb_dcmtk_+eb+cr.dcm", (100, 100, 3), (5, 50), (255, 0, 0)),
        ("SC_rgb_rle.dcm", (100, 100, 3), (5, 50), (255, 0, 0)),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3), (5, 50), (255, 0, 0)),
        ("SC_rgb_gdcm_KY.dcm", (100, 100, 3), (5, 50), (255, 0, 0)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3), (5, 50), (254, 0, 0)),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (100, 100, 3), (5, 50), (253, 1, 0)),
        ("examples_jpeg2k.dcm", (480, 640, 3), (0, 0), (0, 0, 0)),
        ("SC_rgb_small_odd.dcm", (3, 3, 3), (0, 0), (166, 141, 52)),
        ("examples_palette.dcm", (350, 800, 3), (0, 0), (37, 62, 94)),
    ],
)
def test_colors_become_rgb(name, shape, place, color):
    pixels = decode(data_of(name), Decoding(3))
    assert (pixels.shape, pixels.dtype) == (shape, np.uint8)
    assert pixels[place].tolist() == list(color)


def test_palettes_of_16_bits_keep_the_upper_8():
    dataset = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    colors = apply_color_lut(dataset.pixel_array, dataset)
    assert colors[0, 0].tolist() == [9472, 15872, 24064]
    pixels = decode(data_of("examples_palette.dcm"), Decoding(3))
    assert pixels[0, 0].tolist() == [37, 62, 94]
    np.testing.assert_array_equal(pixels, colors // 256)


def test_planar_colors_and_big_endian():
    pixels = decode(data_of("ExplVR_BigEnd.dcm"), Decoding(3))
    assert pixels.shape == (60, 80, 3)


def test_grey_and_rgb_follow_channels():
    rgb = decode(data_of("SC_rgb_rle.dcm"), Decoding(3))
    grey = decode(data_of("SC_rgb_rle.dcm"), Decoding(1))
    assert grey[5, 50].tolist() == [76]  # 0.299 * 255
    assert rgb[5, 50].tolist() == [255, 0, 0]
    ct = decode(data_of("CT_small.dcm"), Decoding(3))
    assert ct[0, 0].tolist() == [-849] * 3
    with pytest.raises(UserError, match="since channels=2"):
        decode(data_of("CT_small.dcm"), Decoding(2))


# ---- What is refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["rtdose.dcm", "examples_ybr_color.dcm"])
def test_several_frames_are_refused_with_the_way_in(name):
    with pytest.raises(UserError, match=r"has \d+ frames: .*':frames' behind") as error:
        decode(data_of(name), Decoding())
    assert not isinstance(error.value, BadImage)


@pytest.mark.parametrize("name", ["rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_files_without_pixels_are_no_images(name):
    with pytest.raises(BadImage, match="has no pixels") as raised:
        decode(data_of(name), Decoding())
    assert raised.value.reason == "not an image"


def test_files_without_preamble_are_read():
    expected = decode(data_of("CT_small.dcm"), Decoding(1))
    bare = data_of("no_meta.dcm")[1:]  # the file has a space in front
    assert bare[128:132] != b"DICM"
    np.testing.assert_array_equal(decode(bare, Decoding(1)), expected)
    meta = data_of("CT_small.dcm")[132:]  # the meta information comes first
    np.testing.assert_array_equal(decode(meta, Decoding(1)), expected)


def test_unknown_colors_and_compressions_are_refused():
    data = edited("SC_rgb_small_odd.dcm", PhotometricInterpretation="HSV")
    with pytest.raises(UserError, match="PhotometricInterpretation 'HSV': expected"):
        decode(data, Decoding())
    mpeg = edited("examples_jpeg2k.dcm", TransferSyntaxUID=pydicom.uid.MPEG2MPML)
    with pytest.raises(UserError, match=r"compressed as MPEG2 .*: expected JPEG"):
        decode(mpeg, Decoding())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (data_of("MR_truncated.dcm"), "truncated"),
        (data_of("CT_small.dcm")[:3000], "not an image"),
        (data_of("CT_small.dcm")[:-500], "truncated"),
        (data_of("CT_small.dcm")[:132], "not an image"),
        (data_of("JPEG-lossy.dcm"), "corrupt"),
        (data_of("badVR.dcm"), "corrupt"),
        (data_of("image_dfl.dcm")[:-2000], "corrupt"),
    ],
)
def test_damaged_files_have_a_reason(data, reason):
    with pytest.raises(BadImage, match="Remove or replace the file") as raised:
        decode(data, Decoding())
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("CT_small.dcm", 128**2), ("MR_small_jp2klossless.dcm", 64**2)],
)
def test_large_images_are_refused_by_their_header(name, pixels):
    decode(data_of(name), Decoding(max_pixels=pixels))
    with pytest.raises(BadImage, match="max_image_pixels") as raised:
        decode(data_of(name), Decoding(max_pixels=pixels - 1))
    assert raised.value.reason == "too large"


@pytest.mark.parametrize(
    ("name", "offset", "size"),
    [
        ("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", 8),
        ("SC_rgb_jpeg.dcm", b"\xff\xc0", 5),
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xf7", 5),
    ],
)
def test_the_size_within_the_compression_counts(name, offset, size):
    data = bytearray(data_of(name))
    at = data.index(offset) + size
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImage) as raised:
        decode(bytes(data), Decoding())
    assert raised.value.reason == "too large"


def test_deflated_files_may_not_grow_without_bound():
    data = data_of("image_dfl.dcm")
    length = int.from_bytes(data[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(10**7)) + deflate.flush()
    with pytest.raises(BadImage, match="deflated") as raised:
        decode(data[: 144 + length] + bomb, Decoding(max_pixels=10**6))
    assert raised.value.reason == "too large"
