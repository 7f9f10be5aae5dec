"""Pure step functions: (state, batch) -> (state, metrics). No files, no globals.

Everything random in a step comes from fold_in(key(seed), step) and a purpose, so that
a run repeats itself on any number of devices and after any restart.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from simmim_jax.augment import basic, randaugment
from simmim_jax.errors import UserError
from simmim_jax.mim import losses, masking
from simmim_jax.mim.objective import SIMMIM, Objective
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Draws a batch's augmentation and masks: (batch, key) -> inputs of the loss.
Prepare = Callable[[Batch, jax.Array], Batch]
# (params, inputs, key of dropped paths) -> loss, metrics.
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class TrainState:
    """All that training changes."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    # Moving average of the parameters that learn; None: none is kept.
    ema: Any = None

    @property
    def averaged(self) -> Any:
        """The parameters to evaluate and to use: averages where there are any."""
        return self.params | (self.ema or {})


def learning(params: Any, frozen: Sequence[str]) -> Any:
    """The parameters that learn: all but those under the top-level names `frozen`."""
    return {name: tree for name, tree in params.items() if name not in frozen}


def purpose(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for each named use of randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    prepare: Prepare,
    loss: Loss,
    tx: optax.GradientTransformation,
    seed: int,
    accumulation: int = 1,
    frozen: Sequence[str] = (),
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters.

    tx: for the parameters that learn, `learning(params, frozen)`; for the others there
    is neither gradient nor optimiser state. accumulation: the batch is worked through
    in so many parts, one after the other, to need less memory; masks and gradient
    clipping are those of the whole batch. ema_decay: the average becomes
    ema_decay * average + (1 - ema_decay) * parameters; 0: there is none.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    inputs, key = prepare(batch, key), purpose(key, "drop_path")
    learned = learning(state.params, frozen)

    def gradients(inputs: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        def loss_of(learned: Any) -> tuple[jax.Array, Metrics]:
            return loss(state.params | learned, inputs, key)

        return jax.grad(loss_of, has_aux=True)(learned)

    if accumulation == 1:
        grads, metrics = gradients(inputs, key)
    else:
        # Sample i goes to part i % accumulation: no sample leaves its device.
        parts = jax.tree.map(
            lambda x: rearrange(x, "(b a) ... -> a b ...", a=accumulation), inputs
        )
        keys = jax.random.split(key, accumulation)
        shapes = jax.eval_shape(jax.vmap(gradients), parts, keys)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda total, xs: (jax.tree.map(jnp.add, total, gradients(*xs)), None),
            zeros,
            (parts, keys),
        )
        grads, metrics = jax.tree.map(lambda x: x / accumulation, total)

    updates, opt_state = tx.update(grads, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    params, ema = state.params | learned, state.ema
    if ema_decay:
        ema = jax.tree.map(lambda e, p: e + (1 - ema_decay) * (p - e), ema, learned)
    metrics |= {
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics


def pretrain_prepare(
    *,
    patch_size: tuple[int, int],
    mask_unit: tuple[int, int],
    mask_ratio: float,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool,
    mask_kind: str = "random",
) -> Prepare:
    """Flips, normalises and draws a mask for each image.

    mask_kind: a name of `masking.MASKS`; mask_unit: height and width in pixels of what
    is hidden together. ValueError for values that cannot be, and, when it sees images,
    where nothing of them would stay visible.
    """
    if mask_kind not in masking.MASKS:
        raise UserError(
            f"config.mask.kind={mask_kind!r}: expected one of {tuple(masking.MASKS)}."
        )
    if mask_unit[0] % patch_size[0] or mask_unit[1] % patch_size[1]:
        raise UserError(
            f"config.mask.unit_size={mask_unit} must be a multiple of "
            f"config.model.patch_size={patch_size}: whole patches are hidden."
        )
    unit = (mask_unit[0] // patch_size[0], mask_unit[1] // patch_size[1])

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images = batch["image"]
        grid = (images.shape[1] // patch_size[0], images.shape[2] // patch_size[1])
        if flip:
            images = basic.random_flip(purpose(key, "flip"), images)
        units = (grid[0] // unit[0]) * (grid[1] // unit[1])
        if masking.num_masked(units, mask_ratio) >= units > 0:
            raise UserError(
                f"config.mask.ratio={mask_ratio} hides all {units} units of an image: "
                "expected a lower one, or a smaller config.mask.unit_size."
            )
        mask = masking.MASKS[mask_kind](
            purpose(key, "mask"), len(images), grid, unit, mask_ratio
        )
        return {"image": basic.normalize(images, mean, std), "mask": mask}

    return prepare


def pretrain_loss(model: SimMIM, objective: Objective = SIMMIM) -> Loss:
    """How far a reconstruction is from what it should be; by default, masked L1."""

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        images, mask = inputs["image"], inputs["mask"]
        prediction = model.apply(
            {"params": params}, images, mask, True, rngs={"drop_path": key}
        )
        value, _ = objective(prediction, images, mask)
        return value, {"loss": value}

    return loss


def finetune_prepare(
    *,
    num_classes: int,
    label_smoothing: float,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    erase_prob: float,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_prob: float,
    mix_switch_prob: float,
) -> Prepare:
    """Augments in the order of the official code, and makes soft targets of labels.

    Flip, RandAugment, normalisation, erasing, mixing; see `randaugment` and `augment`.
    """
    _check_range(randaugment.MAX_MAGNITUDE, magnitude=magnitude)
    _check_range(
        1, erase_prob=erase_prob, mix_prob=mix_prob, mix_switch_prob=mix_switch_prob
    )
    _check_range(
        math.inf,
        num_ops=num_ops,
        magnitude_std=magnitude_std,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
    )
    if num_ops and len(mean) not in (1, 3):
        raise UserError(
            f"config.augment.num_ops={num_ops} with images of {len(mean)} channels: "
            "RandAugment is defined for grey and colour images, set it to 0."
        )
    fill = tuple(min(255, round(255 * level)) for level in mean)

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        images = batch["image"]
        if flip:
            images = basic.random_flip(purpose(key, "flip"), images)
        if num_ops:
            images = randaugment.randaugment(
                purpose(key, "randaugment"),
                images,
                num_ops=num_ops,
                magnitude=magnitude,
                magnitude_std=magnitude_std,
                fill=fill,
            )
        images = basic.normalize(images, mean, std)
        if erase_prob:
            images = basic.random_erase(purpose(key, "erase"), images, erase_prob)
        targets = losses.smooth_labels(batch["label"], num_classes, label_smoothing)
        if mixup_alpha or cutmix_alpha:
            images, targets = basic.mix(
                purpose(key, "mix"),
                images,
                targets,
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mix_prob,
                switch_prob=mix_switch_prob,
            )
        return {"image": images, "target": targets}

    return prepare


def _check_range(most: float, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= most:
            expected = "0 or more" if math.isinf(most) else f"0 to {most}"
            raise UserError(f"config.augment.{name}={value}: expected {expected}.")


def finetune_loss(model: Classifier, *, drop_paths: bool = True) -> Loss:
    """Cross-entropy with soft targets; drop_paths: stochastic depth in the encoder."""

    def loss(params: Any, inputs: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        logits = model.apply(
            {"params": params}, inputs["image"], drop_paths, rngs={"drop_path": key}
        )
        value = losses.cross_entropy(logits, inputs["target"]).mean()
        return value, {"loss": value}

    return loss
