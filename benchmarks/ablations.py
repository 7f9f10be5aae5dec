"""Tries every ablation of configs/ablations.py at smoke size, and prints a table.

    python -m benchmarks.ablations

Each takes the same few steps from the same initial weights of the same tiny Swin on the
same bundled images, at the ablation's own 192 pixels: losses show that it learns, of
different kinds they do not compare. AvgDist and the hidden share are those of its masks.
The last column is top-1 of a Swin-B that pre-trained so for 100 epochs on ImageNet-1k,
where it is published: 82.8 % in the README of github.com/microsoft/SimMIM, and 81.7 % in
the paper, where it compares prediction with reconstruction.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from configs import ablations
from simmim_jax import inputs, masking, steps
from simmim_jax.models.simmim import SimMIM
from simmim_jax.objective import Objective
from simmim_jax.pretrain import init, model_of, objective_of

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
def compiled_step(model: SimMIM, objective: Objective) -> Callable[..., Any]:
    """One update, given masks: ablations of masks share it."""
    step = functools.partial(
        steps.train_step,
        prepare=lambda batch, key: batch,
        loss=steps.pretrain_loss(model, objective),
        tx=TX,
        seed=0,
    )
    return jax.jit(step)


def run(name: str, batches: list[np.ndarray]) -> dict[str, Any]:
    """What an ablation gives: losses, and the AvgDist and share of its masks."""
    config = ablations.get_config(f"{name},smoke")
    model = model_of(config)
    prepare = jax.jit(
        steps.pretrain_prepare(
            patch_size=config.model.patch_size,
            mask_kind=config.mask.kind,
            mask_unit=config.mask.unit_size,
            mask_ratio=config.mask.ratio,
            mean=config.data.mean,
            std=config.data.std,
            flip=True,
        )
    )
    measure = jax.jit(masking.avg_dist, static_argnums=1)
    step = compiled_step(model, objective_of(config))
    key = jax.random.key(config.seed)
    params = jax.jit(functools.partial(init, config, model))(key)
    state = steps.TrainState(jnp.int32(0), params, TX.init(params))
    losses, distances, shares = [], [], []
    for index, images in enumerate(batches):
        prepared = prepare({"image": images}, jax.random.fold_in(key, index))
        state, metrics = step(state, prepared)
        losses.append(float(metrics["loss"]))
        distances.append(measure(prepared["mask"], config.model.patch_size).mean())
        shares.append(prepared["mask"].mean())
    return {
        "ablation": name,
        "changes": ", ".join(
            f"{field}={value}" for field, value in ablations.ABLATIONS[name].items()
        ),
        "first loss": f"{losses[0]:.3f}",
        "last loss": f"{losses[-1]:.3f}",
        "AvgDist": f"{np.mean(distances):.2f}",
        "hidden": f"{np.mean(shares):.1%}",
        "top-1": f"{PUBLISHED[name]} %" if name in PUBLISHED else "",
    }


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
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for name in args.names or ablations.ABLATIONS:
        found = run(name, batches)
        print("| " + " | ".join(found[column] for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
