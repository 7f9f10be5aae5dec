"""Cut the scene of configs/landsat.py into strips, and into patches with labels.

    apt-get download r-cran-stars && dpkg-deb -x r-cran-stars_*.deb packages
    python scripts/cut_landsat.py \
        packages/usr/lib/R/site-library/stars/tif data/landsat

The package, r-cran-stars 0.6-0 of Debian 12 (Apache-2.0), has L7_ETMs.tif, six bands of
Landsat 7 at 28.5 m over Olinda, Brazil, and olinda_dem_utm25s.tif, heights at 90 m from
the same corner. What is held out are strips beside those to train on: results compare
ways to train, and say nothing about other scenes.
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")

STRIP = 64  # rows
HELD_OUT_STRIPS = (1, 4)
PATCH = 16  # pixels, 456 m
HEIGHTS = {"coast": 9, "slopes": 29, "hills": np.inf}  # mean height, below [m]


def cut_landsat(folder: Path, out: Path) -> None:
    """Write strips of the scene, and patches in folders by their mean height."""
    scene = tifffile.imread(folder / "L7_ETMs.tif")
    with tifffile.TiffFile(folder / "olinda_dem_utm25s.tif") as file:
        heights = file.asarray()
        scale = 28.5 / file.pages.first.tags["ModelPixelScaleTag"].value[0]
    for start in range(0, len(scene), STRIP):
        split = "validation" if start // STRIP in HELD_OUT_STRIPS else "train"
        strip = scene[start : start + STRIP]
        write_tiff(out / "strips" / split / f"{start}.tif", strip)
        for y in range(start, start + len(strip), PATCH):
            for x in range(0, scene.shape[1] - PATCH + 1, PATCH):
                top, left = int(y * scale), int(x * scale)
                bottom, right = (int((n + PATCH - 1) * scale) for n in (y, x))
                mean = heights[top : bottom + 1, left : right + 1].mean()
                name = next(name for name, below in HEIGHTS.items() if mean < below)
                patch = scene[y : y + PATCH, x : x + PATCH]
                write_tiff(out / "patches" / split / name / f"{y}_{x}.tif", patch)


def write_tiff(path: Path, image: np.ndarray) -> None:
    """Write bands [h, w, c] as GDAL does, with their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(BANDS)
    )
    xml = f"<GDALMetadata>{names}</GDALMetadata>"
    tifffile.imwrite(
        path,
        image,
        photometric="minisblack",
        planarconfig="contig",
        compression="zlib",
        extratags=[(42112, 2, 0, xml, True)],
    )


def main() -> None:
    """Cut the scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the two files")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    cut_landsat(args.folder, args.out)


if __name__ == "__main__":
    main()
