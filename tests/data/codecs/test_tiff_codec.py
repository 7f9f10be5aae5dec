"""TIFF files give what was written, whichever program wrote them.

Files in `gdal` are by GDAL 3.10.3 (rasterio 1.4.4, scripts/write_gdal_samples.py); what
Pillow 13.0.0 or OpenCV 5.0.0.93 make of them stands behind each.
"""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.image import IMAGE
from simmim_jax.data.codecs.registry import codec_of, read
from simmim_jax.data.codecs.tiff import TIFF, TiffImages, read_directories
from simmim_jax.errors import UserError

GDAL = Path(__file__).parent / "gdal"
HEIGHT, WIDTH = 6, 8
AS_STORED = Decoding()


def gdal(name):
    return (GDAL / f"{name}.tif").read_bytes()


def written(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def ramp(bands, dtype="uint16"):
    """1000 * band + 10 * row + column, as in the files of GDAL."""
    row, column, band = np.ogrid[:HEIGHT, :WIDTH, :bands]
    return (1000 * band + 10 * row + column).astype(dtype)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("thirteen_bands", ramp(13)),  # Pillow refuses, OpenCV returns None
        ("tiles", ramp(13)),
        ("planes", ramp(3)),
        ("int8", -(ramp(1, "int16") % 100).astype("int8")),  # Pillow: 255 for -1
        ("uint32", np.full((HEIGHT, WIDTH, 1), 2**31 + 5, "uint32")),  # -2147483643
        ("float64", ramp(1, "float32") / 4),  # Pillow refuses
        ("twelve_bits", ramp(1) * 50),
        ("big", ramp(2, "int16")),
    ],
)
def test_values_are_those_that_gdal_wrote(name, expected):
    pixels = read(gdal(name), AS_STORED).pixels
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("name", "channels", "value"),
    [
        # Its fourth band is called alpha: Pillow makes (244, 224, 214) on white.
        ("four_bands", 3, [200, 100, 50]),
        ("four_bands", 4, [200, 100, 50, 51]),
        ("four_bands_no_alpha", 3, [200, 100, 50]),
        ("four_bands_no_alpha", 4, [200, 100, 50, 51]),  # Pillow has three
        ("two_bands", 2, [200, 100]),  # Pillow has one
        ("five_bands", 5, [200, 100, 50, 51, 7]),
        ("colors", 3, [200, 100, 50]),
        ("colors", 1, [124]),
    ],
)
def test_bands_of_8_bits(name, channels, value):
    pixels = read(gdal(name), Decoding(channels)).pixels
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - value).max() <= (name == "colors")


@pytest.mark.parametrize(
    ("name", "channels"), [("two_bands", 1), ("five_bands", 3), ("tiles", 3)]
)
def test_no_band_is_left_out_silently(name, channels):
    with pytest.raises(UserError, match=f"channels={channels}"):
        read(gdal(name), Decoding(channels))


def test_planar_colours_of_16_bits():
    # The default of tifffile; Pillow 13.0.0 returns 52 and 18 in turn, OpenCV noise.
    data = written(
        np.full((3, HEIGHT, WIDTH), 0x1234, np.uint16),
        photometric="rgb",
        planarconfig="separate",
    )
    assert (read(data, Decoding(3)).pixels == 0x1234).all()


def test_names_of_bands_and_their_choice():
    assert read(gdal("thirteen_bands"), AS_STORED).bands == tuple(
        f"B{i:02}" for i in range(1, 14)
    )
    chosen = read(gdal("thirteen_bands"), Decoding(3, ("B04", "B03", "B02")))
    np.testing.assert_array_equal(chosen.pixels, ramp(13)[:, :, [3, 2, 1]])


def test_nodata_is_declared():
    heights = read(gdal("heights"), AS_STORED)
    assert heights.pixels.dtype == np.float32
    assert heights.nodata == heights.pixels[0, 0, 0] == -9999
    assert heights.pixels[0, 1, 0] == 1 / 64  # Pillow's mode L has 0
    assert read(gdal("int8"), AS_STORED).nodata == -1
    # Values that the pixels cannot have are none.
    for given in ("nan", "-9999", "1e40", "none"):
        data = written(
            np.zeros((HEIGHT, WIDTH), np.uint8), extratags=[(42113, 2, 0, given, True)]
        )
        assert read(data, AS_STORED).nodata is None


def test_scale_and_offset_are_applied():
    # rasterio and tifffile leave them to the caller.
    found = read(gdal("scaled"), AS_STORED)
    assert np.isnan(found.pixels[0, 0, 0])  # 0 is nodata
    np.testing.assert_allclose(
        found.pixels[1:], ramp(2)[1:] * 1e-4 - 0.1, rtol=0, atol=1e-6
    )
    apart = read(gdal("scaled_apart"), AS_STORED).pixels
    np.testing.assert_allclose(
        apart[..., 0], ramp(2)[..., 0] * 1e-4 - 0.1, rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(apart[..., 1], ramp(2)[..., 1])


def test_missing_tiles_have_no_measurement():
    found = read(gdal("sparse"), AS_STORED)
    assert found.nodata == 7
    assert (found.pixels[:16, :16] == 5).all()
    assert (found.pixels[16:] == 7).all()


def test_masked_pixels_are_nan_and_white_in_photographs():
    found = read(gdal("masked"), AS_STORED)
    assert np.isnan(found.pixels[0]).all()
    np.testing.assert_array_equal(found.pixels[1:], ramp(3)[1:])
    photo = read(gdal("masked_photo"), Decoding(3)).pixels
    assert photo.dtype == np.uint8
    assert (photo[0] == 255).all()
    assert (photo[1:] == [200, 100, 50]).all()


def test_level_of_a_pyramid():
    full = np.kron(ramp(1)[..., 0], np.ones((16, 16), np.uint16))
    for level, step in enumerate((1, 2, 4)):
        pixels = read(gdal("cloud_optimised"), Decoding(level=level)).pixels
        np.testing.assert_array_equal(pixels[..., 0], full[::step, ::step])
    with pytest.raises(UserError, match=r"level=3.*levels from 0 to 2"):
        read(gdal("cloud_optimised"), Decoding(level=3))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float16", "float32", "int64"])
def test_byte_orders_and_dtypes(byteorder, dtype):
    data = written(ramp(1, dtype)[..., 0], byteorder=byteorder)
    found = read(data, AS_STORED).pixels
    np.testing.assert_array_equal(found, ramp(1))
    assert found.dtype.isnative


def test_pages_are_bands_or_images():
    # OpenCV 5.0.0.93 and Pillow read the first page alone.
    pages = np.moveaxis(ramp(5), -1, 0)
    data = written(pages, photometric="minisblack")
    np.testing.assert_array_equal(read(data, AS_STORED).pixels, ramp(5))
    with pytest.raises(UserError, match=r"5 pages.*channels=3.*':pages'"):
        read(data, Decoding(3))
    images = TiffImages(
        io.BytesIO(data), read_directories(data), AS_STORED, by_page=True
    )
    assert len(images) == 5
    np.testing.assert_array_equal(images.read(2).pixels, ramp(5)[..., 2:3])
    images.close()


@pytest.mark.parametrize(
    ("kind", "axes"),
    [("ome", "ZCYX"), ("ome", "CZYX"), ("imagej", "ZCYX"), ("imagej", "TCYX")],
)
def test_axes_of_microscopes(kind, axes):
    shape = {"Z": 3, "T": 3, "C": 2, "Y": HEIGHT, "X": WIDTH}
    array = np.arange(3 * 2 * HEIGHT * WIDTH, dtype=np.uint16)
    array = array.reshape([shape[axis] for axis in axes])
    data = written(array, metadata={"axes": axes}, **{kind: True})
    with pytest.raises(UserError, match=r"3 images \(axes .*':pages'"):
        read(data, AS_STORED)
    images = TiffImages(io.BytesIO(data), read_directories(data), AS_STORED)
    second = images.read(1).pixels
    images.close()
    expected = array[:, 1] if axes[0] == "C" else array[1]
    np.testing.assert_array_equal(second, np.moveaxis(expected, 0, -1))


def test_names_of_ome_channels():
    data = written(
        np.moveaxis(ramp(2), -1, 0),
        ome=True,
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}},
    )
    found = read(data, AS_STORED)
    assert found.bands == ("DAPI", "GFP")
    np.testing.assert_array_equal(found.pixels, ramp(2))


def test_white_is_zero_is_inverted():
    data = written(ramp(1)[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read(data, AS_STORED).pixels, 65535 - ramp(1))


def test_grey_is_repeated_and_colours_become_grey():
    data = written(ramp(1)[..., 0])
    assert (read(data, Decoding(3)).pixels == ramp(1)).all()
    colors = np.full((HEIGHT, WIDTH, 3), (2000, 1000, 500), np.uint16)
    grey = read(written(colors, photometric="rgb"), Decoding(1)).pixels
    assert (grey == round(0.299 * 2000 + 0.587 * 1000 + 0.114 * 500)).all()


def test_orientation_turns_images():
    data = written(ramp(1)[..., 0], extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read(data, AS_STORED).pixels, np.rot90(ramp(1), -1))


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}],
    ids=lambda options: options.get("compression", "none"),
)
def test_photographs_are_as_pillow_decodes_them(options):
    photo = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    )
    for image in (photo, photo.convert("L"), photo.convert("P"), photo.convert("CMYK")):
        if options.get("compression") == "jpeg" and image.mode == "P":
            continue
        file = io.BytesIO()
        image.save(file, "TIFF", **options)
        data = file.getvalue()
        assert codec_of(data) is TIFF
        for channels in (1, 3):
            np.testing.assert_array_equal(
                read(data, Decoding(channels)).pixels,
                IMAGE.decode(data, Decoding(channels)).pixels,
            )


@pytest.mark.parametrize(
    "name", [*(path.stem for path in sorted(GDAL.iterdir()) if path.stem != "lerc")]
)
def test_files_that_are_cut_off(name):
    data = gdal(name)
    for size in (9, len(data) // 2):
        with pytest.raises(BadImage) as raised:
            read(data[:size], AS_STORED)
        assert raised.value.reason in ("truncated", "corrupt")


def test_pixels_that_are_cut_off():
    file = io.BytesIO()
    image = np.arange(40 * 50 * 2, dtype=np.float32).reshape(40, 50, 2)
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig")
    data = file.getvalue()
    np.testing.assert_array_equal(read(data, AS_STORED).pixels, image)
    with pytest.raises(BadImage, match="ends within an image") as raised:
        read(data[:-10], AS_STORED)
    assert raised.value.reason == "truncated"


def test_unknown_compression_is_refused():
    with pytest.raises(UserError, match=r"method 34887.*gdal_translate"):
        read(gdal("lerc"), AS_STORED)


def test_too_many_pixels():
    with pytest.raises(BadImage, match=r"8 x 6 pixels.*at most 40") as raised:
        read(gdal("tiles"), Decoding(max_pixels=40))
    assert raised.value.reason == "too large"


def test_planes_in_other_files_are_refused():
    # tifffile 2026.3.3 returns zeros for them: findings/tifffile_ome_without_planes.sh.
    file = io.BytesIO()
    xml = (
        '<?xml version="1.0"?><OME UUID="urn:uuid:0" xmlns="http://'
        'www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="uint16" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="2" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>'
        '<TiffData FirstC="0" IFD="0" PlaneCount="1"/>'
        '<TiffData FirstC="1" IFD="0" PlaneCount="1">'
        '<UUID FileName="other.ome.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(file, ramp(1)[..., 0], description=xml, metadata=None)
    with pytest.raises(UserError, match="planes in other files"):
        read(file.getvalue(), AS_STORED)


def test_parts_of_a_large_image():
    data = gdal("cloud_optimised")
    full = read(data, AS_STORED).pixels
    images = TiffImages(io.BytesIO(data), read_directories(data), AS_STORED)
    for rows, columns in (
        (slice(0, 20), slice(0, 20)),
        (slice(50, 96), slice(100, 128)),
        (slice(63, 65), slice(5, 128)),
    ):
        part = images.read(0, rows, columns).pixels
        np.testing.assert_array_equal(part, full[rows, columns])
    images.close()


def test_nothing_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    read(gdal("tiles"), AS_STORED)
    assert not [r for r in caplog.records if r.name == "tifffile"]
