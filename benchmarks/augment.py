"""Cost of augmentation: its share of a fine-tuning step, and RandAugment in Pillow.

    python -m benchmarks.augment

Alternates between the official augmentation of a batch (flip, RandAugment,
normalisation, erasing, mixing), a flip only, fine-tuning steps of ViT-S/16 and ViT-B/16
without augmentation, and RandAugment alone, in a batch and with Pillow, image by image
on one core. Prints medians over the turns, and writes them to --json.

On 2 cores of a busy AMD EPYC (2026-11-25, batch 4, float32, 11 turns): augmentation
took 37 ms per image, 5.2 % of a step of ViT-S and 1.7 % of one of ViT-B; RandAugment
alone 21 ms, in Pillow 16 ms. benchmarks/augment_tpu.py has an estimate for TPUs.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from PIL import Image

from benchmarks.pillow_operations import pillow
from simmim_jax.augment import randaugment
from simmim_jax.augment.normalization import Normalization
from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.data.sources.registry import open_source
from simmim_jax.models import build_classifier
from simmim_jax.tasks.classify_step import (
    class_targets,
    finetune_loss,
    finetune_prepare,
)
from simmim_jax.training import steps

SIZE = 224
CLASSES = 1000
OPTIONS = {"magnitude": 9.0, "magnitude_std": 0.5}
FILL = (124, 116, 104)


def photos(n: int) -> np.ndarray:
    """Return photos of a bundled set, enlarged: uint8[n SIZE SIZE 3]."""
    images = open_source("bundled:climate", "train").images[:n]
    return np.stack([Image.fromarray(x).resize((SIZE, SIZE)) for x in images])


def prepare(augmented: bool) -> steps.Prepare:
    """Return the official augmentation, or a flip alone."""
    config = common.finetune()
    if not augmented:
        common.only_crop_and_flip(config)
    return finetune_prepare(
        schema.Augment(**config.augment),
        targets=class_targets(CLASSES, config.label_smoothing),
        normalization=Normalization(schema.IMAGENET_MEAN, schema.IMAGENET_STD),
        flip=True,
    )


def training_step(variant: str, dtype: str, batch: steps.Batch) -> Callable:
    """Return a fine-tuning step of a model, without augmentation."""
    config = common.finetune(variant)
    model = build_classifier(num_classes=CLASSES, dtype=dtype, **config.model)
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    tx = optax.adamw(1e-4)
    step = functools.partial(
        steps.train_step,
        prepare=prepare(augmented=False),
        loss=finetune_loss(model),
        tx=tx,
        seed=0,
    )
    state = steps.TrainState(np.int32(0), params, tx.init(params))
    return functools.partial(jax.jit(step), state, batch)


def pillow_randaugment(images: np.ndarray) -> None:
    """Apply two operations to each image, drawn as `randaugment` draws them."""
    for seed in range(2):
        draw = randaugment.draw(jax.random.key(seed), len(images), **OPTIONS)
        for image, op, argument in zip(images, *map(np.asarray, draw), strict=True):
            if op != randaugment.NONE:
                name = randaugment.OPERATIONS[op]
                pillow(name, Image.fromarray(image), float(argument), FILL)


def seconds(run: Callable[[], object]) -> float:
    """Return the duration of one call [seconds]."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtype", default="float32", help="of the models")
    parser.add_argument("--models", nargs="*", default=["vit_small", "vit_base"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    n = args.batch_size
    batch = {"image": photos(n), "label": np.arange(n, dtype=np.int32)}
    batch, key = jax.device_put(batch), jax.random.key(0)
    alone = functools.partial(randaugment.randaugment, num_ops=2, fill=FILL, **OPTIONS)
    images = np.asarray(batch["image"])
    runs = {
        "augmentation": functools.partial(jax.jit(prepare(True)), batch, key),
        "flip alone": functools.partial(jax.jit(prepare(False)), batch, key),
        "RandAugment": functools.partial(jax.jit(alone), key, batch["image"]),
        "RandAugment, Pillow": functools.partial(pillow_randaugment, images),
    } | {name: training_step(name, args.dtype, batch) for name in args.models}
    for run in runs.values():
        seconds(run)  # compiles
    turns = [
        {name: seconds(run) for name, run in runs.items()} for _ in range(args.turns)
    ]

    result: dict[str, float] = {}
    for name in runs:
        result[f"{name}, ms per image"] = (
            1e3 / n * statistics.median(t[name] for t in turns)
        )
    for name in args.models:
        result[f"augmentation, % of a step of {name}"] = 100 * statistics.median(
            (t["augmentation"] - t["flip alone"]) / t[name] for t in turns
        )
    result["RandAugment, speed relative to Pillow on one core"] = statistics.median(
        t["RandAugment, Pillow"] / t["RandAugment"] for t in turns
    )
    print(f"{jax.devices()[0].device_kind}, batch {n}, {SIZE} px, {args.dtype} models")
    for name, value in result.items():
        print(f"{value:9.2f}  {name}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
