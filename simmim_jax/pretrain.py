"""Pre-training: learn to predict the pixels of what is hidden."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simmim_jax import (
    augment,
    inputs,
    losses,
    masking,
    sharding,
    steps,
    train_loop,
    visualize,
)
from simmim_jax.data.source import Source, SubsetSource
from simmim_jax.models import build_simmim
from simmim_jax.models.simmim import SimMIM


def pretrain(config: ConfigDict, workdir: Path) -> train_loop.Trained:
    """Pre-trains as `config` says, or goes on with what lies in `workdir`."""
    source = inputs.open_split(config, config.data.train_split)
    held_out = inputs.open_split(config, config.data.eval_split)
    model = build_simmim(dtype=config.dtype, **config.model)
    prepare = functools.partial(
        steps.pretrain_prepare,
        patch_size=config.model.patch_size,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluate = evaluation(config, workdir, model, prepare(flip=False), held_out)
    task = train_loop.Task(
        source=source,
        init=functools.partial(init, config, model),
        prepare=prepare(flip=config.data.flip),
        loss=steps.pretrain_loss(model),
        evaluate=evaluate,
        best="eval_loss",
        mode="min",
        picture=functools.partial(picture_path, workdir) if config.pictures else None,
    )
    return train_loop.train(config, workdir, task)


def picture_path(workdir: Path, step: int) -> Path:
    """Where the reconstructions of a step are drawn."""
    return workdir / "reconstructions" / f"{step:07d}.png"


def init(config: ConfigDict, model: SimMIM, key: jax.Array) -> Any:
    """Fresh parameters."""
    height, width = config.data.image_size
    images = jnp.zeros((1, height, width, config.data.channels))
    p, q = config.model.patch_size
    mask = jnp.zeros((1, height // p, width // q), bool)
    return model.init(key, images, mask)["params"]


def evaluation(
    config: ConfigDict,
    workdir: Path,
    model: SimMIM,
    prepare: steps.Prepare,
    source: Source,
) -> Callable[[Any, int], dict[str, float]]:
    """(params, step) -> {"eval_loss"}: masked L1 over all held-out images.

    The masks are the same every time, so that losses compare. Draws some images, taken
    from all over `source`, to `picture_path`.
    """
    batches = inputs.eval_pass(config, source)
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    shown = inputs.eval_pass(config, SubsetSource(source, chosen.astype(int)))
    mesh = sharding.make_mesh(**config.mesh)
    whole = jax.NamedSharding(mesh, jax.P())

    def apply(params: Any, batch: steps.Batch, index: jax.Array) -> tuple:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        prepared = prepare(batch, steps.purpose(key, "eval"))
        images, mask = prepared["image"], prepared["mask"]
        prediction = model.apply({"params": params}, images, mask)
        mask = masking.upsample(mask, *images.shape[1:3])
        return images, prediction, mask

    @functools.partial(jax.jit, out_shardings=whole)
    def batch_loss(params: Any, batch: steps.Batch, index: jax.Array) -> jax.Array:
        images, prediction, mask = apply(params, batch, index)
        weight = batch["weight"][:, None, None]
        return jnp.stack(losses.masked_l1(prediction, images, mask * weight))

    @functools.partial(jax.jit, out_shardings=whole)
    def reconstruct(params: Any, batch: steps.Batch) -> tuple:
        _, prediction, mask = apply(params, batch, jnp.int32(0))
        pixels = augment.denormalize(prediction, config.data.mean, config.data.std)
        n = len(chosen)
        return batch["image"][:n], mask[:n], pixels[:n]

    def evaluate(params: Any, step: int) -> dict[str, float]:
        results = [
            batch_loss(params, sharding.to_devices(batch, mesh), jnp.int32(index))
            for index, batch in enumerate(batches)
        ]
        if config.pictures:
            batch = sharding.to_devices(next(iter(shown)), mesh)
            images, masks, pixels = jax.device_get(reconstruct(params, batch))
            if jax.process_index() == 0:
                path = picture_path(workdir, step)
                visualize.reconstruction_grid(images, masks, pixels, path)
        loss, pixels = np.array(jax.device_get(results), np.float64).T
        return {"eval_loss": float((loss * pixels).sum() / pixels.sum())}

    return evaluate
