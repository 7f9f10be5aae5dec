"""The learning rate and AdamW of config.optim."""

from collections.abc import Callable
from typing import Any

import optax

from simmim_jax.config import durations, schema
from simmim_jax.config.schema import RunConfig
from simmim_jax.training import optim, steps

# Where the official recipes of 800 epochs divide the rate: after 700.
_MILESTONE = 7 / 8


def optimizer(
    config: RunConfig,
    num_examples: int,
    *,
    layer_id: Callable[[tuple[str, ...]], int] = lambda path: 0,
    layer_decay: float = 1.0,
    frozen: tuple[str, ...] = (),
) -> Callable[[Any], tuple[optim.Schedule, optax.GradientTransformation]]:
    """Return a function of parameters, or their shapes, to learning rate and AdamW.

    num_examples: of an epoch; layer_id: the layer of a parameter, for layer-wise decay
    of the learning rate; frozen: top-level names of parameters that do not learn.
    """
    settings = config.optim
    schedule = learning_rate(config, num_examples)

    def of(params: Any) -> tuple[optim.Schedule, optax.GradientTransformation]:
        mask = optim.decay_mask(params, settings.decay_groups)
        scales = optim.layer_scales(params, layer_id, layer_decay)
        tx = optim.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            mask=steps.learning(mask, frozen),
            scales=steps.learning(scales, frozen),
        )
        return schedule, tx

    return of


def learning_rate(config: RunConfig, num_examples: int) -> optim.Schedule:
    """Return the learning rate at each step; num_examples: of an epoch."""
    settings, batch_size = config.optim, config.data.batch_size
    batch_scale = batch_size / optim.REFERENCE_BATCH
    return optim.learning_rate(
        decay=settings.decay,
        peak=settings.lr * batch_scale,
        warmup_lr=settings.warmup_lr * batch_scale,
        min_lr=settings.min_lr * batch_scale,
        total_steps=schema.num_steps(config, "duration", num_examples),
        warmup_steps=schema.num_steps(config, "optim.warmup", num_examples),
        milestones=[
            durations.num_steps(m, batch_size, num_examples)
            for m in settings.milestones
        ],
        schedule=settings.schedule,
    )


def notices(
    config: RunConfig, num_examples: int, path: str = "config"
) -> tuple[str, ...]:
    """Return what a run is too short for: its warm-up, or milestones.

    Each sentence offers a value in proportion to the official recipe. path: of
    `config`, to name its fields.
    """
    settings, said = config.optim, []
    total = schema.num_steps(config, "duration", num_examples)
    length = f"{path}.duration={config.duration!r}"
    peak = settings.lr * config.data.batch_size / optim.REFERENCE_BATCH
    warmup = schema.num_steps(config, "optim.warmup", num_examples)
    if peak and warmup >= total > 1:
        end = float(learning_rate(config, num_examples)(total - 1, 1.0))
        said.append(
            f"{length} ends within {path}.optim.warmup={settings.warmup!r}, at "
            f"{100 * end / peak:.0f} % of the peak learning rate: "
            f"--{path}.optim.warmup={_scaled_warmup(config)!r} would be in proportion."
        )
    late = [
        milestone
        for milestone in settings.milestones
        if durations.num_steps(milestone, config.data.batch_size, num_examples) >= total
    ]
    if late and settings.decay == "multistep":
        scaled = (durations.scaled(config.duration, _MILESTONE),)
        said.append(
            f"{', '.join(late)} of {path}.optim.milestones is not within {length}, and "
            f'never lowers the learning rate: --{path}.optim.milestones="{scaled}" '
            "would be in proportion."
        )
    return tuple(said)


def _scaled_warmup(config: RunConfig) -> str:
    """Return the warm-up that is the same part of the run as in the official recipe."""
    recipe = type(config)()
    (warmup, _), (whole, _) = map(
        durations.parse, (recipe.optim.warmup, recipe.duration)
    )
    return durations.scaled(config.duration, warmup / whole)
