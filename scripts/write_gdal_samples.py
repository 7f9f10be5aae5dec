"""Write tests/data/codecs/gdal: small TIFF files as GDAL writes them.

pip install rasterio==1.4.4 && python scripts/write_gdal_samples.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.shutil import copy

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "codecs" / "gdal"
SIZE = 6, 8
# Of the bands of an image, everywhere.
LEVELS = (200, 100, 50, 51, 7)


def ramp(bands: int, dtype: str) -> np.ndarray:
    """Return [bands, h, w]: 1000 * band + 10 * row + column."""
    band, row, column = np.ogrid[:bands, : SIZE[0], : SIZE[1]]
    return (1000 * band + 10 * row + column).astype(dtype)


def levels(bands: int) -> np.ndarray:
    """Return uint8 [bands, h, w]."""
    return np.broadcast_to(
        np.array(LEVELS[:bands], np.uint8)[:, None, None], (bands, *SIZE)
    )


def write(
    name: str,
    bands: np.ndarray,
    *,
    names: tuple[str, ...] = (),
    mask: np.ndarray | None = None,
    scales: tuple[float, ...] = (),
    offsets: tuple[float, ...] = (),
    **profile: Any,
) -> None:
    """Write bands [c, h, w] to a file, with rasterio's defaults otherwise."""
    count, height, width = bands.shape
    with rasterio.open(
        FOLDER / f"{name}.tif",
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=bands.dtype,
        **profile,
    ) as file:
        file.write(bands)
        if names:
            file.descriptions = names
        if scales:
            file.scales, file.offsets = scales, offsets
        if mask is not None:
            file.write_mask(mask)


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    write("two_bands", levels(2))
    write("four_bands", levels(4))
    write("four_bands_no_alpha", levels(4), photometric="RGB", alpha="NO")
    write("five_bands", levels(5))
    names = tuple(f"B{i:02}" for i in range(1, 14))
    write("thirteen_bands", ramp(13, "uint16"), names=names, compress="lzw")
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    write("tiles", ramp(13, "uint16"), compress="deflate", predictor=2, **tiles)
    write("planes", ramp(3, "uint16"), interleave="band", photometric="RGB")
    write("int8", -(ramp(1, "int16") % 100).astype(np.int8), nodata=-1)
    write("uint32", np.full((1, *SIZE), 2**31 + 5, np.uint32))
    write("float64", ramp(1, "float64") / 4)
    heights = ramp(1, "float32") / 64
    heights[0, 0, 0] = -9999
    write("heights", heights, nodata=-9999, compress="zstd", predictor=3)
    scaled = {"scales": (1e-4, 1e-4), "offsets": (-0.1, -0.1)}
    write("scaled", ramp(2, "uint16"), nodata=0, **scaled)
    write("scaled_apart", ramp(2, "uint16"), scales=(1e-4, 1), offsets=(-0.1, 0))
    write("twelve_bits", ramp(1, "uint16") * 50, nbits=12)
    write("big", ramp(2, "int16"), bigtiff="YES", endianness="BIG")
    write("colors", levels(3), interleave="pixel", photometric="ycbcr", compress="jpeg")
    mask = np.ones(SIZE, bool)
    mask[0] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write("masked", ramp(3, "uint16"), mask=mask)
        write("masked_photo", levels(3), mask=mask)
    with rasterio.open(
        FOLDER / "sparse.tif",
        "w",
        driver="GTiff",
        count=1,
        height=32,
        width=32,
        dtype="uint16",
        nodata=7,
        sparse_ok=True,
        **tiles,
    ) as file:
        file.write(np.full((1, 16, 16), 5, np.uint16), window=((0, 16), (0, 16)))
    large = np.kron(ramp(1, "uint16"), np.ones((1, 16, 16), np.uint16))
    write("large", large, **tiles)
    with rasterio.open(FOLDER / "large.tif", "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
    copy(
        FOLDER / "large.tif",
        FOLDER / "cloud_optimised.tif",
        driver="COG",
        blocksize=128,
    )
    (FOLDER / "large.tif").unlink()
    write("lerc", ramp(1, "float32"), compress="lerc")


if __name__ == "__main__":
    main()
