"""Time of an evaluation beside that of the forward passes it needs.

    python -m benchmarks.evaluation quickstart vit_base_finetune:smoke

For the fine-tuning of each config, with random weights: a run's evaluation of its
held-out images, and the classifier alone on as many batches, one and the same, which is
on the device already. They take turns; times and ratio are medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from simmim_jax.cli import arguments
from simmim_jax.config import schema
from simmim_jax.runtime import sharding
from simmim_jax.tasks import classify, inputs, values


def fine_tuning(name: str) -> schema.Finetune:
    """Return the config of that name, or the fine-tuning of a comparison."""
    fields: ConfigDict = arguments.load(name, [])[1]
    config = schema.parse(fields.get("finetune", fields))
    if not isinstance(config, schema.Finetune):
        sys.exit(f"{name} fine-tunes no classifier: name a config that does.")
    return config


def measure(
    config: schema.Finetune, turns: int
) -> tuple[int, list[float], list[float]]:
    """Return the held-out images, and seconds of evaluations and forward passes."""
    data = config.data
    held_out = inputs.open_split(data, data.eval_split)
    with tempfile.TemporaryDirectory() as workdir:
        run = classify.build(config, Path(workdir))
    _, model = classify.learner(values.assume(config), 1, len(held_out.class_names))
    params = jax.jit(run.learner.init)(jax.random.key(0))
    shape = (data.batch_size, *data.image_size, data.channels)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    images = sharding.to_devices({"image": noise}, run.mesh)["image"]
    forward = jax.jit(lambda params, images: model.apply({"params": params}, images))

    def forward_passes() -> None:
        for _ in range(-(-len(held_out) // data.batch_size)):
            forward(params, images).block_until_ready()

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    works = (lambda: run.evaluate(params, 0), forward_passes)
    for work in works:
        work()  # compiles
    evaluations, passes = zip(*(map(seconds, works) for _ in range(turns)), strict=True)
    return len(held_out), evaluations, passes


def main() -> None:
    """Print a row for each config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    print("| config | images | evaluation, s | forward passes, s | ratio |")
    print("|---|---|---|---|---|", flush=True)
    for name in args.configs:
        images, evaluations, passes = measure(fine_tuning(name), args.turns)
        ratio = statistics.median(
            a / b for a, b in zip(evaluations, passes, strict=True)
        )
        print(
            f"| {name} | {images:,} | {statistics.median(evaluations):.2f} "
            f"| {statistics.median(passes):.2f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
