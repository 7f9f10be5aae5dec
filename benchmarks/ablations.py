"""Tries every ablation of configs/ablations.py at smoke size, and prints a table.

    python -m benchmarks.ablations

Each takes the same few steps from the same initial weights of the same tiny Swin on the
same bundled images, at the ablation's own 192 pixels: losses show that it learns, and
compare only where they are of one kind. AvgDist and the hidden share are those of the
masks drawn. The last column is the top-1 of a Swin-B that pre-trained so for 100 epochs
on ImageNet-1k, where it is published: 82.8 % in the README of
github.com/microsoft/SimMIM, 81.7 % in the paper, where it compares predicting what is
hidden with reconstructing everything (section 4.1).
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from simmim_jax.configs import ablations

from simmim_jax.mim import masking
from simmim_jax.mim.objective import Objective
from simmim_jax.models.simmim import SimMIM
from simmim_jax.tasks.pretrain import init, model_of, objective_of
from simmim_jax.training import inputs, steps

PUBLISHED = {"random_32_0.6": 82.8, "all_pixels": 81.7}
COLUMNS = (
    "ablation",
    "changes",
    "first loss",
    "last loss",
    "AvgDist",
    "hidden",
    "top-1",
)
TX = optax.adam(2e-3)


@functools.cache
def start(model: SimMIM) -> steps.TrainState:
    """Fresh parameters, the same for every ablation that has the model."""
    config = ablations.get_config("smoke")
    params = jax.jit(functools.partial(init, config, model))(jax.random.key(0))
    return steps.TrainState(jnp.int32(0), params, TX.init(params))


@functools.cache
def compiled_step(model: SimMIM, objective: Objective) -> Callable[..., Any]:
    """One update, once masks are drawn: ablations of masks share it."""
    step = functools.partial(
        steps.train_step,
        prepare=lambda batch, key: batch,
        loss=steps.pretrain_loss(model, objective),
        tx=TX,
        seed=0,
    )
    return jax.jit(step)


def run(name: str, batches: list[np.ndarray]) -> list[str]:
    """The line of an ablation."""
    config = ablations.get_config(f"{name},smoke")
    draw = steps.pretrain_prepare(
        patch_size=config.model.patch_size,
        mask_kind=config.mask.kind,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        mean=config.data.mean,
        std=config.data.std,
        flip=True,
    )

    @jax.jit
    def prepare(images: np.ndarray, step: int) -> tuple[steps.Batch, jax.Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        prepared = draw({"image": images}, key)
        return prepared, masking.avg_dist(prepared["mask"], config.model.patch_size)

    model = model_of(config)
    state, step = start(model), compiled_step(model, objective_of(config))
    losses, distances, shares = [], [], []
    for index, images in enumerate(batches):
        prepared, distance = prepare(images, index)
        state, metrics = step(state, prepared)
        losses.append(metrics["loss"])
        distances.append(distance)
        shares.append(prepared["mask"])
    changes = ablations.ABLATIONS[name].items()
    return [
        name,
        ", ".join(f"{field}={value}" for field, value in changes),
        f"{losses[0]:.3f}",
        f"{losses[-1]:.3f}",
        f"{np.mean(distances):.2f}",
        f"{np.mean(shares):.1%}",
        f"{PUBLISHED[name]} %" if name in PUBLISHED else "",
    ]


def main() -> None:
    """Prints a line as each ablation is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    config = ablations.get_config("smoke")
    source = inputs.open_split(config, config.data.train_split)
    stream = inputs.train_batches(config, source)
    batches = [next(stream)["image"] for _ in range(args.steps)]
    stream.close()
    print_line(COLUMNS)
    print_line(["---"] * len(COLUMNS))
    for name in args.names or ablations.ABLATIONS:
        print_line(run(name, batches))


def print_line(cells: Sequence[str]) -> None:
    """A line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
