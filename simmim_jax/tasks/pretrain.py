"""Pre-training: learn to predict the pixels of what is hidden."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.config import schema
from simmim_jax.config.schema import Pretrain
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.mim import masking
from simmim_jax.mim.objective import Objective
from simmim_jax.models import build_simmim, plain
from simmim_jax.models.simmim import SimMIM
from simmim_jax.monitoring import pictures
from simmim_jax.runtime import sharding
from simmim_jax.tasks import inputs, precision, pretrained, values
from simmim_jax.tasks.display import displayed, displayed_masks
from simmim_jax.tasks.optimizer import notices, optimizer
from simmim_jax.tasks.pretrain_probe import probe
from simmim_jax.tasks.pretrain_step import pretrain_loss, pretrain_prepare
from simmim_jax.tasks.resumed import changes_of
from simmim_jax.training import steps
from simmim_jax.training.inputs import results_of_pass, with_progress
from simmim_jax.training.run import Evaluate, Learner, Run


class Parts:
    """Model, objective and preparation of a config, made once."""

    def __init__(self, config: Pretrain):
        """raises: UserError where `config` makes no sense."""
        self.config = config
        self.model = model_of(config)
        self.objective = objective_of(config)
        self.prepare = functools.partial(
            pretrain_prepare,
            patch_size=config.model.patch_size,
            mask_kind=config.mask.kind,
            mask_unit=config.mask.unit_size,
            mask_ratio=config.mask.ratio,
            mask_span=config.mask.span,
            normalization=values.normalization(config.data),
        )

    def learner(self, num_examples: int) -> Learner:
        """Return what learns; num_examples: of an epoch."""
        config, model = self.config, self.model
        return Learner(
            init=functools.partial(init, config, model),
            prepare=self.prepare(flip=config.data.flip),
            loss=pretrain_loss(model, self.objective),
            plain_loss=pretrain_loss(plain(model), self.objective),
            batch=inputs.batch_like(config.data),
            optimizer=optimizer(config, num_examples),
            seed=config.seed,
            accumulation=config.optim.accumulation,
            ema_decay=config.ema_decay,
        )


def learner(config: Pretrain, num_examples: int) -> Learner:
    """Return what learns in pre-training; raises UserError where it makes no sense."""
    return Parts(config).learner(num_examples)


def build(
    config: Pretrain,
    workdir: Path,
    *,
    train: Source | None = None,
    held_out: Source | None = None,
    path: str = "config",
) -> Run:
    """Return the run of a config; raises UserError where it makes no sense.

    train, held_out: in place of the splits of config.data.dataset; path: of `config`,
    to name its fields.
    """
    data = config.data
    # `or` would replace an empty source in silence.
    source = inputs.open_split(data, data.train_split) if train is None else train
    if held_out is None:
        held_out = inputs.open_split(data, data.eval_split)
    config, said = values.resolve(config, source, workdir, path)
    parts = Parts(config)
    learns, lengths = parts.learner(len(source)), inputs.lengths(config, len(source))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    record: dict[str, Any] = {
        "config": schema.to_dict(config),
        "labelled": len(source.class_names) > 1,  # as fine-tuning needs it
    }
    record |= pretrained.record(config, learns)
    measured: Evaluate | None = None
    if lengths.probe_every:
        measured, what = probe(config, source, held_out, mesh)
        said += (what,)
    return Run(
        title="pretrain",
        workdir=workdir,
        learner=learns,
        mesh=mesh,
        lengths=lengths,
        description=inputs.describe(data, source, held_out),
        stream=functools.partial(inputs.train_batches, config, source, workdir),
        evaluate=evaluation(parts, workdir, held_out, mesh),
        probe=measured,
        constants=functools.partial(constants, parts, len(held_out)),
        best="eval_loss",
        mode="min",
        record=record,
        changes=changes_of(workdir, config, record, len(source)),
        notices=(*said, *notices(config, len(source), path)),
        restore=functools.partial(pretrained.restore, config)
        if config.init_from
        else None,
        picture=functools.partial(picture_path, workdir) if config.pictures else None,
        keep_checkpoints=config.keep_checkpoints,
        wandb=config.wandb,
        profile=(config.profile.start_step, config.profile.num_steps),
    )


def picture_path(workdir: Path, step: int) -> Path:
    """Return where the reconstructions of a step are drawn."""
    return workdir / "reconstructions" / f"{step:07d}.png"


def objective_of(config: Pretrain) -> Objective:
    """Return what config.target and config.loss describe.

    raises: UserError for settings that exclude each other.
    """
    objective = Objective(
        target=config.target.kind,
        window=config.target.window,
        downsample=config.target.downsample,
        loss=config.loss.kind,
        bins=config.loss.bins,
        area=config.loss.area,
        normalization=values.normalization(config.data),
    )
    objective.check_mask(config.mask.unit_size, config.mask.ratio)
    return objective


def model_of(config: Pretrain) -> SimMIM:
    """Return the encoder of config.model, and a decoder of what is predicted."""
    return build_simmim(
        dtype=precision.of_machine(config.dtype),
        decoder_kind=config.decoder.kind,
        downsample=config.target.downsample,
        bins=config.loss.bins if config.loss.kind == "bins" else 0,
        **schema.to_dict(config.model),
    )


def init(config: Pretrain, model: SimMIM, key: jax.Array) -> Any:
    """Return fresh parameters."""
    height, width = config.data.image_size
    images = jnp.zeros((1, height, width, config.data.channels))
    p, q = config.model.patch_size
    mask = jnp.zeros((1, height // p, width // q), bool)
    return model.init(key, images, mask)["params"]


def constants(parts: Parts, num_held_out: int) -> dict[str, float]:
    """Return {"avg_dist"}, AvgDist of the held-out masks (see `masking.avg_dist`)."""
    config, prepare = parts.config, parts.prepare(flip=False)
    shape = (config.data.batch_size, *config.data.image_size, config.data.channels)

    @jax.jit
    def distances(index: jax.Array) -> jax.Array:
        # A value that is not the mark of pixels without data.
        measured = int(values.normalization(config.data).nodata == 0)
        images = jnp.full(shape, measured, config.data.dtype)
        mask = prepare({"image": images}, _mask_key(config, index))["mask"]
        return masking.avg_dist(mask, config.model.patch_size)

    batches = range(-(-num_held_out // shape[0]))
    found = np.concatenate([distances(jnp.int32(index)) for index in batches])
    return {"avg_dist": float(found[:num_held_out].mean())}


def _mask_key(config: Pretrain, index: jax.Array) -> jax.Array:
    """Return the key of the masks of a held-out batch, the same in every evaluation."""
    key = jax.random.fold_in(jax.random.key(config.seed), index)
    return steps.purpose(key, "eval")


def evaluation(
    parts: Parts, workdir: Path, source: Source, mesh: jax.sharding.Mesh
) -> Evaluate:
    """Return (params, step) -> {"eval_loss"} over all held-out images.

    The loss is the configured one. The masks are the same every time, so that losses
    compare. Draws some images, taken from all over `source`, to `picture_path`.
    """
    config, model, objective = parts.config, parts.model, parts.objective
    prepare = parts.prepare(flip=False)
    batches = inputs.eval_pass(config.data, source, workdir)
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    whole = jax.NamedSharding(mesh, jax.P())

    def apply(params: Any, batch: steps.Batch, index: jax.Array) -> tuple:
        prepared = prepare(batch, _mask_key(config, index))
        images, mask = prepared["image"], prepared["mask"]
        params = sharding.gathered(params, mesh)
        with sharding.on_mesh(mesh):
            prediction = model.apply({"params": params}, images, mask)
        return images, prediction, mask, prepared.get("valid")

    @functools.partial(jax.jit, out_shardings=whole)
    def batch_sums(params: Any, batch: steps.Batch, index: jax.Array) -> jax.Array:
        images, prediction, mask, valid = apply(params, batch, index)
        loss, pixels = objective(prediction, images, mask, batch["weight"], valid)
        return jnp.stack([loss * pixels, pixels])

    @functools.partial(jax.jit, out_shardings=whole)
    def reconstruct(params: Any, batch: steps.Batch) -> tuple:
        images, prediction, mask, valid = apply(params, batch, jnp.int32(0))
        pixels = objective.to_pixels(prediction, images, valid)
        mask = masking.upsample(mask, *images.shape[1:3])
        n = len(chosen)
        return batch["image"][:n], mask[:n], pixels[:n]

    def draw(params: Any, step: int) -> None:
        shown = inputs.eval_pass(config.data, SubsetSource(source, chosen.astype(int)))
        batch = sharding.to_devices(next(iter(shown)), mesh)
        images, masks, pixels = jax.device_get(reconstruct(params, batch))
        if jax.process_index() == 0:
            path = picture_path(workdir, step)
            valid = values.normalization(config.data).valid(images)
            if valid is not None:
                # What none of them has may never have been learned.
                pixels = np.where(np.asarray(valid).any(0), pixels, np.nan)
            images, pixels = (displayed(config.data, x) for x in (images, pixels))
            masks = displayed_masks(config.data, masks)
            pictures.reconstruction_grid(images, masks, pixels, path)

    def evaluate(params: Any, step: int) -> dict[str, float]:
        results = results_of_pass(
            lambda batch, index: batch_sums(params, batch, jnp.int32(index)),
            with_progress(batches),
            mesh,
        )
        if config.pictures:
            draw(params, step)
        loss, pixels = np.array(results, np.float64).sum(0).tolist()
        return {"eval_loss": loss / pixels} | batches.bad.metrics("eval_bad_images")

    return evaluate
