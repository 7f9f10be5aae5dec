"""Vectors a second: `simmim embed` beside a timm script, and exported models.

    python3 -m venv others
    others/bin/pip install torch torchvision timm
    pip install -e '.[convert,export]' && pip install --no-deps jax2onnx==0.17.1
    python -m benchmarks.embed --torch=others/bin/python --photographs=FOLDER

A folder of photographs of 500x375, crops of those in FOLDER or of the bundled map,
becomes a file of vectors, decoding included: by `simmim embed`, and by a torch
DataLoader of as many workers as CPUs with timm's transform and `forward_features`. Both
have the same weights, drawn by timm and converted, and their vectors are compared. Then
the models alone, on prepared batches of 8: in this package, in ONNX Runtime and in
jax.export, exported by `simmim export`. Each is a process that uses all CPUs in
float32; they take turns, and ratios are medians over turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH, SMALL_BATCH = 64, 8
HEIGHT, WIDTH = 375, 500
MODELS = {  # and their heads, which weights do not determine
    "vit_tiny_patch16_224": 3,
    "vit_small_patch16_224": 6,
    "vit_base_patch16_224": 12,
}
WEIGHTS, RUN, PHOTOS = "timm", "run", "photos"
ONNX, STABLEHLO = "encoder.onnx", "encoder.stablehlo"


# ---- Files ---------------------------------------------------------------------------


def write_photographs(folder: Path, count: int, originals: list[Path]) -> None:
    """Write random crops of images as JPEG files, by turns of each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    for turn, path in enumerate(originals):
        with Image.open(path) as file:
            photo = file.convert("RGB")
            largest = min(photo.width / WIDTH, photo.height / HEIGHT)
            for number in range(turn, count, len(originals)):
                scale = rng.uniform(1, largest)
                width, height = int(scale * WIDTH), int(scale * HEIGHT)
                left = int(rng.integers(photo.width - width + 1))
                top = int(rng.integers(photo.height - height + 1))
                box = (left, top, left + width, top + height)
                crop = photo.resize((WIDTH, HEIGHT), box=box)
                crop.save(folder / f"{number:05}.jpg", quality=90)


def bundled_map() -> list[Path]:
    """Return the path of the bundled map."""
    import simmim_jax.data

    return [Path(simmim_jax.data.__file__).parent / "bundled" / "climate-map.jpg"]


def write_weights(model: str, folder: Path) -> None:
    """Write a model of timm with random weights, as `push_to_hf_hub` would."""
    import timm
    import torch

    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=0)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)


# ---- One pass of each: folder -> vectors ---------------------------------------------


def ours(folder: Path) -> Callable[[], np.ndarray]:
    """Return what `simmim embed` runs."""
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.tasks.embed import embed
    from simmim_jax.tasks.encoder import Encoder

    encoder = Encoder.load(folder / RUN)
    source = open_source(str(folder / PHOTOS), "all")
    out = folder / "ours.npy"

    def one_pass() -> np.ndarray:
        out.unlink(missing_ok=True)
        embed(encoder, {"all": source}, out, plan={})
        return np.load(out)

    return one_pass


def timm_script(folder: Path) -> Callable[[], np.ndarray]:
    """Return what users of timm write."""
    import timm
    import torch
    from PIL import Image

    net = timm.create_model(f"local-dir:{folder / WEIGHTS}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(net)
    transform = timm.data.create_transform(**settings)
    paths = sorted((folder / PHOTOS).iterdir())
    out = folder / "timm.npy"

    class Photographs(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return transform(Image.open(paths[index]).convert("RGB"))

    loader = torch.utils.data.DataLoader(
        Photographs(), BATCH, num_workers=os.cpu_count() or 1, persistent_workers=True
    )

    @torch.inference_mode()
    def one_pass() -> np.ndarray:
        vectors = [net.forward_features(batch)[:, 1:].mean(1) for batch in loader]
        np.save(out, torch.cat(vectors).numpy())
        return np.load(out)

    return one_pass


def ours_alone(folder: Path) -> Callable[[], np.ndarray]:
    """Return this package's encoder on prepared batches."""
    import jax

    from simmim_jax.tasks.encoder import Encoder

    encoder = Encoder.load(folder / RUN)
    apply = jax.jit(encoder.apply)
    images = prepared(folder)

    def one_pass() -> np.ndarray:
        return np.concatenate([apply(encoder.params, batch) for batch in images])

    return one_pass


def onnx_alone(folder: Path) -> Callable[[], np.ndarray]:
    """Return ONNX Runtime on the same batches."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / ONNX), providers=["CPUExecutionProvider"]
    )
    images = prepared(folder)

    def one_pass() -> np.ndarray:
        return np.concatenate([session.run(None, {"images": b})[0] for b in images])

    return one_pass


def stablehlo_alone(folder: Path) -> Callable[[], np.ndarray]:
    """Return jax.export on the same batches."""
    import jax
    from jax import export

    exported = export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    apply = jax.jit(exported.call)
    images = prepared(folder)

    def one_pass() -> np.ndarray:
        return np.concatenate([apply(batch) for batch in images])

    return one_pass


def prepared(folder: Path) -> list[np.ndarray]:
    """Return some photographs as an encoder takes them, in whole batches."""
    images = np.load(folder / "prepared.npy")
    return np.split(images, len(images) // SMALL_BATCH)


MAKERS = {
    "simmim embed": ours,
    "timm": timm_script,
    "ours alone": ours_alone,
    "ONNX Runtime": onnx_alone,
    "jax.export": stablehlo_alone,
}
# The first one is compared with each of the others.
GROUPS = (("simmim embed", "timm"), ("ours alone", "ONNX Runtime", "jax.export"))


def work(name: str, folder: Path) -> None:
    """Run a pass for each line on stdin, and answer with images a second."""
    if name == "weights":
        return write_weights(os.environ["MODEL"], folder / WEIGHTS)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    one_pass = MAKERS[name](folder)
    np.save(folder / f"{name}.vectors.npy", one_pass())
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        images = len(one_pass())
        rate = images / (time.perf_counter() - start)
        print(json.dumps(rate), file=answers, flush=True)
    return None


# ---- Turns ---------------------------------------------------------------------------


def command(name: str, python: str, folder: Path) -> list[str]:
    """Return the command of a process of this script."""
    return [python, __file__, "--work", name, str(folder)]


class Process:
    """One of `MAKERS` in a process of its own."""

    def __init__(self, name: str, python: str, folder: Path):
        self.process = subprocess.Popen(
            command(name, python, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        if self._read() != "ready":
            sys.exit(f"{name} failed: see the error above.")

    def _read(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self) -> float:
        """Return images a second of one pass."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._read()  # type: ignore[return-value]

    def close(self) -> None:
        """End the process."""
        self.process.communicate("")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}


def prepare(model: str, folder: Path, torch: str) -> None:
    """Write weights, the converted run, its exports and prepared batches."""
    weights = command("weights", torch, folder)
    subprocess.run(weights, check=True, env=environment(MODEL=model))
    heads = f"--model.num_heads={MODELS[model]}"
    simmim = [sys.executable, "-m", "simmim_jax"]
    for arguments in (
        ("convert", folder / WEIGHTS, folder / RUN, heads),
        ("export", folder / RUN, folder / ONNX),
        ("export", folder / RUN, folder / STABLEHLO),
    ):
        subprocess.run([*simmim, *arguments], check=True, env=environment())
    import simmim_jax

    encoder = simmim_jax.load(folder / RUN)
    paths = sorted((folder / PHOTOS).iterdir())[:BATCH]
    np.save(folder / "prepared.npy", encoder.prepare(paths))


def check(folder: Path, one: str, other: str, least: float) -> float:
    """Return the least cosine of vectors of two processes; exit if below `least`."""
    pair = [np.load(folder / f"{name}.vectors.npy") for name in (one, other)]
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in pair)
    cosine = float((a * b).sum(1).min())
    if not cosine >= least:
        sys.exit(f"{one} and {other} differ: cosine {cosine:.5f}, expected {least}.")
    return cosine


def measure(
    group: tuple[str, ...], pythons: dict[str, str], folder: Path, turns: int
) -> list[list[float]]:
    """Return the rates of some of `MAKERS` [images/s], a list for each turn."""
    processes = [Process(name, pythons[name], folder) for name in group]
    rates = [[process.turn() for process in processes] for _ in range(turns)]
    for process in processes:
        process.close()
    return rates


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS][:2])
    parser.add_argument(
        "--photographs",
        type=Path,
        metavar="FOLDER",
        help="JPEG files (the bundled map)",
    )
    parser.add_argument("--images", type=int, default=256, help="64 or more")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work[0], Path(args.work[1]))
    if args.images < BATCH:
        sys.exit(f"--images={args.images}: expected {BATCH} or more.")
    originals = (
        sorted(args.photographs.rglob("*.jpg")) if args.photographs else bundled_map()
    )
    pythons = dict.fromkeys(MAKERS, sys.executable) | {"timm": args.torch}
    print("| model | ours, images/s | beside | images/s | ours over it | cosine |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        write_photographs(Path(temporary, PHOTOS), args.images, originals)
        for model in args.models:
            folder = Path(temporary, model)
            folder.mkdir()
            (folder / PHOTOS).symlink_to(Path(temporary, PHOTOS))
            prepare(model, folder, args.torch)
            for group in GROUPS:
                rates = np.array(measure(group, pythons, folder, args.turns))
                for place, name in enumerate(group[1:], start=1):
                    cosine = check(folder, group[0], name, least=0.999)
                    first, other = np.median(rates[:, [0, place]], axis=0)
                    ratio = np.median(rates[:, 0] / rates[:, place])
                    print(
                        f"| {model} | {group[0]}: {first:.1f} | {name} | {other:.1f} | "
                        f"{ratio:.2f} | {cosine:.5f} |",
                        flush=True,
                    )
    return None


if __name__ == "__main__":
    main()
