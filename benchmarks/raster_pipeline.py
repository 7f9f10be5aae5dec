"""Rasters a second and core: this input pipeline beside rasterio's and tifffile's.

    python3 -m venv others
    others/bin/pip install torch torchvision rasterio tifffile imagecodecs
    python -m benchmarks.raster_pipeline --torch=others/bin/python

It writes tiles like those of a Sentinel-2 set, 13 bands of uint16 and 120x120 pixels,
and larger ones of 2 bands of float32 and 512x512, in several formats. Each pipeline has
random crops of 0.67 to 1 of the area at 96x96 (224x224) made of them, in batches of 8:
ours by this package, and those of a torch DataLoader with rasterio or tifffile and
torchvision's RandomResizedCrop in float32, antialiased as ours. Each runs in a process
of its own on one core, they take turns, and CPU time counts, so that other work on the
machine does not. Ratios are medians over turns.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.input_pipeline import RATIO, SCALE, Pipeline, in_turns, work

BATCH = 8
# Name, shape, dtype, number of images, size of crops.
SETS = {
    "tiles": ((120, 120, 13), "uint16", 160, 96),
    "large": ((512, 512, 2), "float32", 48, 224),
}
FORMATS = ("plain", "tiled", "zarr", "hdf5", "packed")


# ---- Files ---------------------------------------------------------------------------


def make_images(name: str) -> np.ndarray:
    """Return smooth fields with noise [n, h, w, c], as reflectances are."""
    import cv2

    (height, width, bands), dtype, count, _ = SETS[name]
    rng = np.random.default_rng(0)
    images = np.empty((count, height, width, bands), dtype)
    for image in images:
        for band in range(bands):
            coarse = rng.normal(2000, 800, (height // 12, width // 12))
            smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            noisy = smooth + rng.normal(0, 40, smooth.shape)
            image[:, :, band] = noisy.clip(0, 10_000)
    return images


def write_formats(images: np.ndarray, folder: Path) -> None:
    """Write images as each of `FORMATS`."""
    import h5py
    import tifffile
    import zarr

    for name, options in (
        ("plain", {}),
        ("tiled", {"tile": (64, 64), "compression": "zlib", "predictor": True}),
    ):
        for i, image in enumerate(images):
            path = folder / name / "train" / f"{i:04}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(
                path,
                image,
                photometric="minisblack",
                planarconfig="contig",
                **options,
            )
    chunks = (1, *images.shape[1:])
    group = zarr.open_group(folder / "zarr.zarr", mode="w")
    array = group.create_array(
        "train/images", shape=images.shape, chunks=chunks, dtype=images.dtype
    )
    array[:] = images
    with h5py.File(folder / "hdf5.h5", "w") as file:
        file.create_dataset("train/images", data=images, chunks=chunks)
    command = [sys.executable, "-m", "simmim_jax", "pack"]
    places = [folder / "plain", folder / "packed"]
    options = ["--format=raw", "--short_side=0", "--splits=train"]
    channels = f"--channels={images.shape[3]}"
    subprocess.run(
        [*command, *places, *options, channels], check=True, stdout=subprocess.DEVNULL
    )


# ---- Pipelines -----------------------------------------------------------------------


def ours(place: Path) -> Callable[[], int]:
    """This package's training iterator; the name of the set stands in the path."""
    from simmim_jax.data.codecs.base import Decoding
    from simmim_jax.data.loader.pipeline import train_iterator
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.data.views.image import RandomCropView

    shape, dtype, count, size = SETS[place.parent.name]
    view = RandomCropView(
        size=(size, size),
        decoding=Decoding(channels=shape[2]),
        scale=SCALE,
        ratio=RATIO,
        interpolation="bilinear",
        dtype=dtype,
        fast=True,
    )
    source = open_source(str(place), "train")
    iterator = train_iterator(
        source, view, batch_size=BATCH, seed=0, num_workers=0, num_threads=1
    )

    def one_pass() -> int:
        for _ in range(count // BATCH):
            next(iterator)
        return count

    return one_pass


def torch_loader(place: Path, library: str) -> Callable[[], int]:
    """A DataLoader of one worker, in its process."""
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    files = sorted(map(str, place.rglob("*.tif")))
    size = SETS[place.parent.name][-1]
    crop = v2.RandomResizedCrop(size, scale=SCALE, ratio=RATIO, antialias=True)

    def read_rasterio(path: str) -> np.ndarray:
        with rasterio.open(path) as file:
            return file.read()

    def read_tifffile(path: str) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(tifffile.imread(path), -1, 0))

    if library == "rasterio":
        import rasterio

        read = read_rasterio
    else:
        import tifffile

        read = read_tifffile

    class Rasters(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            return crop(torch.from_numpy(read(files[index]).astype(np.float32)))

    loader = torch.utils.data.DataLoader(Rasters(), BATCH, shuffle=True, drop_last=True)

    def one_pass() -> int:
        return sum(len(batch) for batch in loader)

    return one_pass


MAKERS = {
    **{f"ours {format}": ours for format in FORMATS},
    **{
        f"{library} {format}": functools.partial(torch_loader, library=library)
        for library in ("rasterio", "tifffile")
        for format in ("plain", "tiled")
    },
}


# ---- Turns ---------------------------------------------------------------------------


def measure(folder: Path, torch: str, turns: int) -> dict[str, list[float]]:
    """Return the rates of all pipelines [images/s of CPU time], by name and turn."""
    places = {"zarr": folder / "zarr.zarr", "hdf5": folder / "hdf5.h5"}
    pipelines = {}
    for name in MAKERS:
        library, format = name.split()
        python = sys.executable if library == "ours" else torch
        place = places.get(format, folder / format)
        pipelines[name] = Pipeline(name, python, place, script=__file__)
    return in_turns(pipelines, turns)


def over(rates: dict[str, list[float]], ours: str, theirs: str) -> str:
    """Return the median over turns of one pipeline's rate over another's, or ""."""
    if theirs not in rates:
        return ""
    pairs = zip(rates[ours], rates[theirs], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work[0], Path(args.work[1]), MAKERS)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (shape, dtype, count, size) in SETS.items():
            folder = Path(temporary, name)
            write_formats(make_images(name), folder)
            rates = measure(folder, args.torch, args.turns)
            print(
                f"\n{name}: {count} of {list(shape)} {dtype}, crops of {size} pixels\n"
            )
            print("| pipeline | images/s a core | over rasterio | over tifffile |")
            print("|---|---|---|---|")
            for pipeline, turn in rates.items():
                format = pipeline.split()[1]
                theirs = format if format in ("plain", "tiled") else "plain"
                ratios = [
                    over(rates, pipeline, f"{library} {theirs}")
                    for library in ("rasterio", "tifffile")
                ]
                print(
                    f"| {pipeline} | {statistics.median(turn):,.0f} | "
                    f"{' | '.join(ratios)} |"
                )
            results[name] = {n: statistics.median(turn) for n, turn in rates.items()}
    if args.json:
        print(json.dumps(results))
    return None


if __name__ == "__main__":
    main()
