"""The learning rate and AdamW of config.optim."""

from collections.abc import Callable
from typing import Any

import optax

from simmim_jax.config import durations, schema
from simmim_jax.config.schema import Finetune, Pretrain
from simmim_jax.training import optim, steps


def optimizer(
    config: Pretrain | Finetune,
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
    settings, batch_size = config.optim, config.data.batch_size
    batch_scale = batch_size / optim.REFERENCE_BATCH
    schedule = optim.learning_rate(
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
