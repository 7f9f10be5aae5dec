"""Images a second and core: this input pipeline beside others, and the bare decoder.

    apt-get install mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    python -m benchmarks.input_pipeline --photos=/usr/share/backgrounds

From a folder of large photographs it makes ImageNet-like JPEGs (500x375) and ones of
2,000 pixels, packs both, and has each pipeline make SimMIM's pre-training batches of
them: random crops of 0.67 to 1 of the area at 224x224. Each runs in a process of its
own on one core, they take turns, and CPU time counts, so that other work on the machine
does not. Ratios are medians over turns. tf.data and torchvision are measured where they
are installed, or in other environments: --tensorflow=PYTHON --torchvision=PYTHON.
"""

import argparse
import functools
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

SIZE = 224
SCALE = (0.67, 1.0)
RATIO = (3 / 4, 4 / 3)
BATCH = 8
PIPELINES = {
    "decoder": "simplejpeg, whole image, nothing else",
    "ours": "this package",
    "ours exact": "this package, fast_decode=False",
    "tf.data": "decode_and_crop_jpeg, resize without antialiasing",
    "tf.data antialiased": "the same, antialiased as Pillow is",
    "torchvision": "RandomResizedCrop, flip, ToTensor, Normalize; DataLoader",
    "Pillow": "open, crop, resize",
    "ours jpeg": "this package, packed as JPEG of 256 pixels",
    "ours raw": "this package, packed as pixels, 256 high or wide",
}


# ---- Photographs ---------------------------------------------------------------------


def make_photos(photos: Path, out: Path) -> None:
    """Write out/500x375 and out/2000: JPEGs about as large as ImageNet's and cameras'.

    Of eight crops a photograph, the four with most detail are kept; ImageNet's files
    have 110 kB on average.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("500x375", "2000"):
        (out / name).mkdir(parents=True)
    count = 0
    for path in sorted(photos.rglob("*.jpg")):
        image = Image.open(path)
        width, height = image.size
        if image.mode != "RGB" or width < 1500 or height < 1125:
            continue
        count += 1
        crops = []
        for _ in range(8):
            zoom = rng.uniform(1, min(width / 500, height / 375, 4))
            w, h = int(500 * zoom), int(375 * zoom)
            x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
            crop = image.crop((x, y, x + w, y + h)).resize((500, 375), Image.BICUBIC)
            file = io.BytesIO()
            crop.save(file, "JPEG", quality=95)
            crops.append(file.getvalue())
        for i, data in enumerate(sorted(crops, key=len)[4:]):
            (out / "500x375" / f"{count:03}-{i}.jpg").write_bytes(data)
        if width >= 2000:
            image.thumbnail((2000, 2000), Image.BICUBIC)
            image.save(out / "2000" / f"{count:03}.jpg", quality=92)
    if not count:
        sys.exit(f"{photos} has no .jpg photographs of 1500x1125 pixels or more.")


# ---- Pipelines: folder -> a function that makes one pass and returns its images ------


def decoder(folder: Path) -> Callable[[], int]:
    """Decode from memory, at full size."""
    import simplejpeg

    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

    def one_pass() -> int:
        for data in files:
            simplejpeg.decode_jpeg(data)
        return len(files)

    return one_pass


def ours(folder: Path, fast_decode: bool = True) -> Callable[[], int]:
    """This package's training iterator."""
    from simmim_jax.data.codecs.base import Decoding
    from simmim_jax.data.loader.pipeline import train_iterator
    from simmim_jax.data.sources.base import SubsetSource
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.data.views.image import RandomCropView

    source = open_source(str(folder), "train")
    source = SubsetSource(source, np.arange(len(source) // BATCH * BATCH))
    view = RandomCropView(
        size=(SIZE, SIZE),
        decoding=Decoding(channels=3),
        scale=SCALE,
        ratio=RATIO,
        interpolation="bilinear",
        fast=fast_decode,
    )
    iterator = train_iterator(
        source,
        view,
        batch_size=BATCH,
        seed=0,
        num_workers=0,
        num_threads=1,
    )

    def one_pass() -> int:
        for _ in range(len(source) // BATCH):
            next(iterator)
        return len(source)

    return one_pass


def tf_data(folder: Path, antialias: bool = False) -> Callable[[], int]:
    """The fastest common pipeline of JAX users."""
    import tensorflow as tf

    files = [str(path) for path in sorted(folder.glob("*.jpg"))]

    def crop(path):
        data = tf.io.read_file(path)
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4], tf.float32),
            area_range=SCALE,
            aspect_ratio_range=RATIO,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.stack([start[0], start[1], size[0], size[1]])
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), "bilinear", antialias=antialias)
        return tf.cast(image, tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(files).repeat().map(crop, 1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    iterator = iter(
        data.batch(BATCH).prefetch(2).with_options(options).as_numpy_iterator()
    )

    def one_pass() -> int:
        steps = len(files) // BATCH
        for _ in range(steps):
            next(iterator)
        return steps * BATCH

    return one_pass


def torchvision(folder: Path) -> Callable[[], int]:
    """The official code's transform."""
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    files = sorted(folder.glob("*.jpg"))
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            with open(files[index], "rb") as file:
                return transform(Image.open(file).convert("RGB"))

    loader = torch.utils.data.DataLoader(Photos(), BATCH, shuffle=True, drop_last=True)

    def one_pass() -> int:
        return sum(len(batch) for batch in loader)

    return one_pass


def pillow(folder: Path) -> Callable[[], int]:
    """Crops of the middle, of a random size."""
    from PIL import Image

    files = sorted(folder.glob("*.jpg"))
    rng = np.random.default_rng(0)

    def one_pass() -> int:
        for path in files:
            image = Image.open(path).convert("RGB")
            share = np.sqrt(rng.uniform(*SCALE))
            width, height = int(image.width * share), int(image.height * share)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            box = (left, top, left + width, top + height)
            np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR, box=box))
        return len(files)

    return one_pass


Makers = Mapping[str, Callable[[Path], Callable[[], int]]]
MAKERS: Makers = {
    "decoder": decoder,
    "ours": ours,
    "ours exact": functools.partial(ours, fast_decode=False),
    "tf.data": tf_data,
    "tf.data antialiased": functools.partial(tf_data, antialias=True),
    "torchvision": torchvision,
    "Pillow": pillow,
    "ours jpeg": ours,
    "ours raw": ours,
}


def work(name: str, folder: Path, makers: Makers) -> None:
    """A process of one pipeline: for each line read, one pass and a line of JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    one_pass = makers[name](folder)
    one_pass()  # compiles, fills caches
    print(json.dumps("ready"), flush=True)
    # From turn to turn: what is read ahead while others have theirs counts as well.
    start = time.process_time()
    for _ in sys.stdin:
        images = one_pass()
        now = time.process_time()
        print(json.dumps(images / (now - start)), flush=True)
        start = now


# ---- Turns ---------------------------------------------------------------------------


class Pipeline:
    """One pipeline's process."""

    def __init__(self, name: str, python: str, folder: Path, script: str = __file__):
        self.process = subprocess.Popen(
            [python, script, "--work", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.is_there = self._read() == "ready"

    def _read(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self) -> float:
        """Images a second of CPU time, in one pass."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate("")


def in_turns(pipelines: dict[str, Pipeline], turns: int) -> dict[str, list[float]]:
    """Return the rates of those that run here, a turn after the other; closes them."""
    rates: dict[str, list[float]] = {n: [] for n, p in pipelines.items() if p.is_there}
    for _ in range(turns):
        for name, turn in rates.items():
            turn.append(pipelines[name].turn())
    for pipeline in pipelines.values():
        pipeline.close()
    return rates


def measure(photos: Path, pythons: dict[str, str], turns: int) -> dict:
    """Rates of all pipelines that run here: {pipeline: [images/s of each turn]}."""
    folders = {}
    for name, options in {
        "ours jpeg": ["--short_side=256", "--format=jpeg"],
        "ours raw": ["--short_side=256", "--format=raw"],
    }.items():
        folders[name] = photos.parent / f"{photos.name}-{name.split()[1]}"
        command = [sys.executable, "-m", "simmim_jax.data.pack", photos, folders[name]]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    pipelines = {
        name: Pipeline(
            name, pythons.get(name, sys.executable), folders.get(name, photos)
        )
        for name in PIPELINES
    }
    return in_turns(pipelines, turns)


def ratio(rates: dict[str, list[float]], ours: str, theirs: str) -> float | None:
    """The median over turns of one pipeline's rate over another's."""
    if theirs not in rates:
        return None
    pairs = zip(rates[ours], rates[theirs], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def main() -> None:
    """Prints a table for each size of photographs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=Path("/usr/share/backgrounds"))
    parser.add_argument("--tensorflow", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--torchvision", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work[0], Path(args.work[1]), MAKERS)

    pythons = {
        "tf.data": args.tensorflow,
        "tf.data antialiased": args.tensorflow,
        "torchvision": args.torchvision,
    }
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        make_photos(args.photos, Path(temporary))
        for name in ("500x375", "2000"):
            photos = Path(temporary, name)
            sizes = [path.stat().st_size for path in photos.iterdir()]
            rates = measure(photos, pythons, args.turns)
            print(f"\n{name}: {len(sizes)} JPEGs of {np.mean(sizes) / 1e3:.0f} kB\n")
            print("| pipeline | images/s a core | ours over it |\n|---|---|---|")
            for pipeline, turn in rates.items():
                print(
                    f"| {pipeline}: {PIPELINES[pipeline]} | "
                    f"{statistics.median(turn):,.0f} | "
                    f"{ratio(rates, 'ours', pipeline)} |"
                )
            results[name] = {
                "ours_over_tfdata": ratio(rates, "ours", "tf.data"),
                "ours_over_tfdata_antialiased": ratio(
                    rates, "ours", "tf.data antialiased"
                ),
                "ours_over_torchvision": ratio(rates, "ours", "torchvision"),
                "ours_over_decoder": ratio(rates, "ours", "decoder"),
                "packed_over_unpacked": ratio(rates, "ours raw", "ours"),
                "packed_jpeg_over_unpacked": ratio(rates, "ours jpeg", "ours"),
            }
    if args.json:
        print(json.dumps({**results["500x375"], "large": results["2000"]}))
    return None


if __name__ == "__main__":
    main()
