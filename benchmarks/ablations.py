"""Try every ablation of configs/ablations.py at smoke size, and print a table.

    python -m benchmarks.ablations

All ablations train the same tiny Swin from the same initial weights for the same few
steps on the same bundled images at 192 pixels. Losses show that the model learns; they
are comparable only between losses of one kind. AvgDist and the masked share are those
of the drawn masks. The last column is the published top-1 of a Swin-B after 100 epochs
of this pre-training on ImageNet-1k: 82.8 % in the README of
github.com/microsoft/SimMIM; 81.7 % in the paper, which compares predicting masked
pixels with reconstructing all of them (section 4.1).
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

from simmim_jax.config import schema
from simmim_jax.configs import ablations
from simmim_jax.mim import masking
from simmim_jax.mim.objective import Objective
from simmim_jax.models.simmim import SimMIM
from simmim_jax.tasks import inputs
from simmim_jax.tasks.pretrain import Parts, init
from simmim_jax.tasks.pretrain_step import pretrain_loss
from simmim_jax.tasks.values import assume
from simmim_jax.training import steps

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


def config_of(argument: str) -> schema.Pretrain:
    """Return a config of configs/ablations.py, typed, for photographs."""
    return assume(schema.single(schema.parse(ablations.get_config(argument))))


@functools.cache
def start(model: SimMIM) -> steps.TrainState:
    """Return fresh parameters, the same for all ablations of one model."""
    config = config_of("smoke")
    params = jax.jit(functools.partial(init, config, model))(jax.random.key(0))
    return steps.TrainState(jnp.int32(0), params, TX.init(params))


@functools.cache
def compiled_step(model: SimMIM, objective: Objective) -> Callable[..., Any]:
    """Return one update of prepared batches; ablations of masks share it."""
    step = functools.partial(
        steps.train_step,
        prepare=lambda batch, key: batch,
        loss=pretrain_loss(model, objective),
        tx=TX,
        seed=0,
    )
    return jax.jit(step)


def run(name: str, batches: list[np.ndarray]) -> list[str]:
    """Return the line of an ablation."""
    config = config_of(f"{name},smoke")
    parts = Parts(config)
    draw = parts.prepare(flip=True)

    @jax.jit
    def prepare(images: np.ndarray, step: int) -> tuple[steps.Batch, jax.Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        prepared = draw({"image": images}, key)
        return prepared, masking.avg_dist(prepared["mask"], config.model.patch_size)

    state = start(parts.model)
    step = compiled_step(parts.model, parts.objective)
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
    """Print a line after each ablation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    config = config_of("smoke")
    source = inputs.open_split(config.data, config.data.train_split)
    stream = inputs.train_batches(config, source)
    batches = [next(stream)["image"] for _ in range(args.steps)]
    stream.close()
    print_line(COLUMNS)
    print_line(["---"] * len(COLUMNS))
    for name in args.names or ablations.ABLATIONS:
        print_line(run(name, batches))


def print_line(cells: Sequence[str]) -> None:
    """Print a line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
