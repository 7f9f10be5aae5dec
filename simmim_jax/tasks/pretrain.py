"""Pre-training: learn to predict the pixels of what is hidden."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.mim import masking
from simmim_jax.mim.objective import Objective
from simmim_jax.models import build_simmim, plain
from simmim_jax.models.simmim import SimMIM
from simmim_jax.monitoring import pictures
from simmim_jax.runtime import sharding
from simmim_jax.training import inputs, loop, steps
from simmim_jax.training.compilation import Learner


def pretrain(config: ConfigDict, workdir: Path) -> loop.Trained:
    """Pre-trains as `config` says, or goes on with what lies in `workdir`."""
    return loop.train(config, workdir, pretrain_task(config, workdir))


def learner(config: ConfigDict, num_examples: int) -> Learner:
    """What learns in pre-training; ValueError where `config` makes no sense."""
    model, objective = model_of(config), objective_of(config)
    return Learner(
        init=functools.partial(init, config, model),
        prepare=preparation(config)(flip=config.data.flip),
        loss=steps.pretrain_loss(model, objective),
        plain_loss=steps.pretrain_loss(plain(model), objective),
        num_examples=num_examples,
    )


def pretrain_task(config: ConfigDict, workdir: Path) -> loop.Task:
    """What the training loop is to do; ValueError where `config` makes no sense."""
    source = inputs.open_split(config, config.data.train_split)
    held_out = inputs.open_split(config, config.data.eval_split)
    return loop.Task(
        **vars(learner(config, len(source))),
        source=source,
        data=inputs.describe(source, held_out, (), config.data.batch_size),
        evaluate=evaluation(config, workdir, held_out),
        best="eval_loss",
        mode="min",
        picture=functools.partial(picture_path, workdir) if config.pictures else None,
    )


def preparation(config: ConfigDict) -> Callable[..., steps.Prepare]:
    """What happens to a batch, once it is said whether images are flipped."""
    return functools.partial(
        steps.pretrain_prepare,
        patch_size=config.model.patch_size,
        mask_kind=config.mask.kind,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        mean=config.data.mean,
        std=config.data.std,
    )


def picture_path(workdir: Path, step: int) -> Path:
    """Where the reconstructions of a step are drawn."""
    return workdir / "reconstructions" / f"{step:07d}.png"


def objective_of(config: ConfigDict) -> Objective:
    """What config.target and config.loss describe; ValueError where it cannot be."""
    objective = Objective(
        target=config.target.kind,
        window=config.target.window,
        downsample=config.target.downsample,
        loss=config.loss.kind,
        bins=config.loss.bins,
        area=config.loss.area,
        mean=config.data.mean,
        std=config.data.std,
    )
    objective.check_mask(config.mask.unit_size, config.mask.ratio)
    return objective


def model_of(config: ConfigDict) -> SimMIM:
    """The encoder of config.model, and a decoder that predicts what is wanted."""
    return build_simmim(
        dtype=config.dtype,
        decoder_kind=config.decoder.kind,
        downsample=config.target.downsample,
        bins=config.loss.bins if config.loss.kind == "bins" else 0,
        **config.model,
    )


def init(config: ConfigDict, model: SimMIM, key: jax.Array) -> Any:
    """Fresh parameters."""
    height, width = config.data.image_size
    images = jnp.zeros((1, height, width, config.data.channels))
    p, q = config.model.patch_size
    mask = jnp.zeros((1, height // p, width // q), bool)
    return model.init(key, images, mask)["params"]


def evaluation(
    config: ConfigDict, workdir: Path, source: Source
) -> Callable[[Any, int], dict[str, float]]:
    """(params, step) -> {"eval_loss", "avg_dist"} over all held-out images.

    The loss is the configured one. The masks are the same every time, so that losses
    compare; AvgDist (see `masking.avg_dist`) is theirs. Draws some images, taken from
    all over `source`, to `picture_path`.
    """
    model, objective = model_of(config), objective_of(config)
    prepare = preparation(config)(flip=False)
    batches = inputs.eval_pass(config, source, workdir)
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    mesh = sharding.make_mesh(**config.mesh)
    whole = jax.NamedSharding(mesh, jax.P())

    def apply(params: Any, batch: steps.Batch, index: jax.Array) -> tuple:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        prepared = prepare(batch, steps.purpose(key, "eval"))
        images, mask = prepared["image"], prepared["mask"]
        params = sharding.gathered(params, mesh)
        with sharding.on_mesh(mesh):
            return images, model.apply({"params": params}, images, mask), mask

    @functools.partial(jax.jit, out_shardings=whole)
    def batch_sums(params: Any, batch: steps.Batch, index: jax.Array) -> jax.Array:
        images, prediction, mask = apply(params, batch, index)
        weight = batch["weight"]
        loss, pixels = objective(prediction, images, mask, weight)
        distance = masking.avg_dist(mask, config.model.patch_size)
        return jnp.stack([loss * pixels, pixels, distance @ weight, weight.sum()])

    @functools.partial(jax.jit, out_shardings=whole)
    def reconstruct(params: Any, batch: steps.Batch) -> tuple:
        images, prediction, mask = apply(params, batch, jnp.int32(0))
        pixels = objective.to_pixels(prediction, images)
        mask = masking.upsample(mask, *images.shape[1:3])
        n = len(chosen)
        return batch["image"][:n], mask[:n], pixels[:n]

    def evaluate(params: Any, step: int) -> dict[str, float]:
        results = inputs.results_of_pass(
            lambda batch, index: batch_sums(params, batch, jnp.int32(index)),
            batches,
            mesh,
        )
        if config.pictures:
            shown = inputs.eval_pass(config, SubsetSource(source, chosen.astype(int)))
            batch = sharding.to_devices(next(iter(shown)), mesh)
            images, masks, pixels = jax.device_get(reconstruct(params, batch))
            if jax.process_index() == 0:
                path = picture_path(workdir, step)
                pictures.reconstruction_grid(images, masks, pixels, path)
        sums = np.array(results, np.float64).sum(0)
        loss, pixels, distance, count = sums.tolist()
        metrics = {"eval_loss": loss / pixels, "avg_dist": distance / count}
        return metrics | batches.bad.metrics("eval_bad_images")

    return evaluate
