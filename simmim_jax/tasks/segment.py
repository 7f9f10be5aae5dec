"""Semantic segmentation: teach an encoder the class of every pixel."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.checkpoints import layout
from simmim_jax.config import schema
from simmim_jax.config.schema import Segment, SegmentData
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.codecs.masks import decode_mask
from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.data.sources.windows import WindowSource, tile
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models import build_segmenter, plain
from simmim_jax.models.segmenter import Segmenter, resized
from simmim_jax.monitoring import pictures
from simmim_jax.runtime import distributed, sharding
from simmim_jax.tasks import inputs, precision, pretrained, values
from simmim_jax.tasks.display import displayed
from simmim_jax.tasks.optimizer import notices, optimizer
from simmim_jax.tasks.resumed import changes_of
from simmim_jax.tasks.segment_step import (
    confusion,
    counted,
    intersection_over_union,
    segment_loss,
    segment_prepare,
)
from simmim_jax.tasks.views import decoding_of, eval_view, mean_pixel, window_view
from simmim_jax.training import steps
from simmim_jax.training.inputs import results_of_pass, with_progress
from simmim_jax.training.run import Evaluate, Learner, Run

T = TypeVar("T")

_MASKS_LOOKED_AT = 64


def learner(
    config: Segment, num_examples: int, num_classes: int
) -> tuple[Learner, Segmenter]:
    """Return what learns in segmentation, and its model.

    raises: UserError where `config` makes no sense.
    """
    model = model_of(config, num_classes)
    images = jnp.zeros((1, *config.data.image_size, config.data.channels))
    frozen = ("encoder",) if config.freeze_encoder else ()
    loss = functools.partial(
        segment_loss,
        auxiliary_weight=config.auxiliary_weight,
        ignore_index=config.data.ignore_index,
    )
    return (
        Learner(
            init=lambda key: model.init(key, images)["params"],
            prepare=preparation(config.data, flip=config.data.flip),
            loss=loss(model, train=not config.freeze_encoder),
            plain_loss=loss(plain(model), train=False),
            batch=inputs.batch_like(config.data),
            optimizer=optimizer(
                config,
                num_examples,
                layer_id=model.layer_id,
                layer_decay=config.optim.layer_decay,
                frozen=frozen,
            ),
            seed=config.seed,
            frozen=frozen,
            accumulation=config.optim.accumulation,
            ema_decay=config.ema_decay,
        ),
        model,
    )


def model_of(config: Segment, num_classes: int) -> Segmenter:
    """Return the encoder and the heads of config.model."""
    return build_segmenter(
        num_classes=num_classes,
        dtype=precision.of_machine(config.dtype),
        **schema.to_dict(config.model),
    )


def preparation(data: SegmentData, *, flip: bool) -> steps.Prepare:
    """Return the preparation of a batch of config.data."""
    return segment_prepare(
        normalization=values.normalization(data),
        flip=flip,
        ignore_index=data.ignore_index,
    )


def build(
    config: Segment,
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
    source, left_out = with_masks(source, f"{path}.data.train_split")
    held_out, also_left_out = with_masks(held_out, f"{path}.data.eval_split")
    class_names = find_classes(data, source, workdir)
    data = dataclasses.replace(data, num_classes=len(class_names))
    config = dataclasses.replace(config, data=data)
    config, said = values.resolve(config, source, workdir, path)
    data = config.data
    if data.num_masks:
        source = some_of(source, data.num_masks, config.seed)
    record: dict[str, Any] = {
        "config": schema.to_dict(config),
        "mask_classes": list(class_names),
    }
    learns, model = learner(config, len(source), len(class_names))
    record |= pretrained.record(config, learns)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return Run(
        title="segment",
        workdir=workdir,
        learner=learns,
        mesh=mesh,
        lengths=inputs.lengths(config, len(source)),
        description=inputs.describe(data, source, held_out, class_names),
        stream=functools.partial(inputs.train_batches, config, source, workdir),
        evaluate=evaluation(config, model, workdir, held_out, class_names, mesh),
        best="miou",
        mode="max",
        record=record,
        changes=changes_of(workdir, config, record, len(source)),
        notices=(
            *said,
            *left_out,
            *also_left_out,
            *ignored_notice(data, source),
            *notices(config, len(source), path),
        ),
        restore=functools.partial(pretrained.restore, config)
        if config.init_from
        else None,
        picture=functools.partial(picture_path, workdir) if config.pictures else None,
        keep_checkpoints=config.keep_checkpoints,
        wandb=config.wandb,
        profile=(config.profile.start_step, config.profile.num_steps),
    )


def picture_path(workdir: Path, step: int) -> Path:
    """Return where the masks of a step are drawn."""
    return workdir / "segmentations" / f"{step:07d}.png"


# ---- Masks ---------------------------------------------------------------------------


def with_masks(source: Source, split: str) -> tuple[Source, tuple[str, ...]]:
    """Return the examples that have a mask, and how many have none.

    split: its field, for messages. raises: UserError where none has one.
    """
    has_mask = getattr(source, "has_mask", None)
    if has_mask is None:
        has_mask = np.array(["mask" in source[i] for i in range(len(source))])
    if not has_mask.any():
        raise UserError(
            f"{split}: none of {len(source):,} images has a mask. Expected a folder "
            "with images/ and masks/ of equal names, or examples with 'mask'."
        )
    if has_mask.all():
        return source, ()
    missing = len(source) - int(has_mask.sum())
    said = f"{split}: {missing:,} of {len(source):,} images have no mask, left out"
    return SubsetSource(source, np.flatnonzero(has_mask)), (said,)


def some_of(source: Source, count: int, seed: int) -> Source:
    """Return some examples; with the same seed, fewer are part of more."""
    if count > len(source):
        raise UserError(
            f"config.data.num_masks={count}: expected at most {len(source)}, the images"
            " with a mask; 0 trains on all."
        )
    order = np.random.default_rng(seed).permutation(len(source))
    return SubsetSource(source, np.sort(order[:count]))


def find_classes(data: SegmentData, source: Source, workdir: Path) -> tuple[str, ...]:
    """Return the names of the classes, by index.

    They are those of the run in `workdir`, of the data set, or numbers: as many as
    config.data.num_classes says, or as masks have.
    """
    names, where = mask_classes(source), data.dataset
    if any((workdir / "checkpoints").glob("*/params")):
        names, where = tuple(layout.read_record(workdir)["mask_classes"]), str(workdir)
    if names and data.num_classes not in (0, len(names)):
        raise UserError(
            f"config.data.num_classes={data.num_classes}, but {where!r} has "
            f"{len(names)} classes: leave the field out, or change the names of the "
            "classes and begin another run."
        )
    if names:
        return names
    count = data.num_classes
    if not count and jax.process_index() == 0:
        count = _highest(data, source) + 1
    if jax.process_count() > 1:
        count = distributed.of_first_process(count)
    if count < 2:
        raise UserError(
            f"the masks of {data.dataset!r} have {count} classes: expected at least "
            "two, such as 0 for the background and 1 for what is looked for. "
            f"{data.ignore_index} (config.data.ignore_index) counts as none."
        )
    return tuple(map(str, range(count)))


def mask_classes(source: Source) -> tuple[str, ...]:
    """Return the names that a data set has for the classes of pixels, or ()."""
    whole = source.source if isinstance(source, SubsetSource) else source
    return tuple(getattr(whole, "mask_classes", ()))


def _highest(data: SegmentData, source: Source) -> int:
    """Return the highest index in all masks that can be read, -1 if there is none."""

    def highest(mask: np.ndarray) -> int:
        return int(mask[mask != data.ignore_index].max(initial=0))

    return max(_of_masks(data, source, highest, bad=-1))


def ignored_notice(data: SegmentData, source: Source) -> tuple[str, ...]:
    """Return what to say where masks have one class and ignored pixels alone.

    Such as those of 0 and 255, where 255 is meant for a class. Looks at some of them.
    """
    chosen = np.linspace(0, len(source) - 1, min(_MASKS_LOOKED_AT, len(source)))
    some = SubsetSource(source, chosen.astype(int))
    found = set[int]().union(
        *_of_masks(data, some, lambda mask: set(np.unique(mask).tolist()), bad=set())
    )
    if data.ignore_index not in found or len(found) != 2:
        return ()
    (only,) = found - {data.ignore_index}
    return (
        f"the pixels of {len(some):,} masks are {only} or {data.ignore_index}, which "
        "config.data.ignore_index says is no class: if it is one, write masks with "
        "another number for it",
    )


def _of_masks(
    data: SegmentData, source: Source, function: Callable[[np.ndarray], T], *, bad: T
) -> list[T]:
    """Return a function of each mask, uint16 [h w 1]; bad: that of unreadable ones."""

    def of_one(index: int) -> T:
        try:
            return function(decode_mask(source[index]["mask"], data.max_image_pixels))
        except (BadImage, OSError):
            return bad

    with ThreadPoolExecutor(num_cpus()) as pool:
        return list(pool.map(of_one, range(len(source))))


# ---- Evaluation ----------------------------------------------------------------------


def held_out_rows(data: SegmentData, source: Source) -> tuple[Source, View]:
    """Return what makes up the rows of an evaluation: whole images, or windows."""
    if not data.eval_windows:
        return source, eval_view(data)
    shapes = _of_masks(data, source, lambda m: m.shape[:2], bad=data.image_size)
    windows = [
        (number, window)
        for number, shape in enumerate(shapes)
        for window in tile(shape, data.image_size)
    ]
    cut = WindowSource(
        source,
        windows,
        data.image_size,
        decoding_of(data),
        mean_pixel(data),
        data.num_classes,
        data.ignore_index,
    )
    return cut, window_view(data)


def evaluation(
    config: Segment,
    model: Segmenter,
    workdir: Path,
    source: Source,
    class_names: tuple[str, ...],
    mesh: jax.sharding.Mesh,
) -> Evaluate:
    """Return (params, step) -> {"miou", "pixel_accuracy", "eval_loss"} of `source`.

    miou: the mean over the classes that occur, of pixels of all images together.
    Writes the IoU of each class to <workdir>/iou.tsv, and draws some images, taken from
    all over `source`, to `picture_path`.
    """
    data, num_classes = config.data, len(class_names)
    prepare = preparation(data, flip=False)
    source, view = held_out_rows(data, source)
    batches = inputs.eval_pass(data, source, workdir, view=view)
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    whole = jax.NamedSharding(mesh, jax.P())

    @functools.partial(jax.jit, out_shardings=whole)
    def judge(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        """Return sums over the pixels that count, masks and predictions [b h w]."""
        prepared = prepare(batch, jax.random.key(0))
        masks = jnp.where(
            batch["weight"][:, None, None] > 0, prepared["mask"], data.ignore_index
        )
        params = sharding.gathered(params, mesh)
        with sharding.on_mesh(mesh):
            logits, _ = model.apply({"params": params}, prepared["image"])
        logits = resized(logits, masks.shape[1:])
        predicted = logits.argmax(-1)
        return {
            "counts": confusion(masks, predicted, num_classes, data.ignore_index),
            "loss": losses.pixel_cross_entropy(logits, masks, data.ignore_index),
            "pixels": counted(masks, data.ignore_index),
            "truth": masks.astype(jnp.uint16),
            "prediction": predicted.astype(jnp.uint16),
        }

    def sums_of(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        found = judge(params, batch)
        return {name: found[name] for name in ("counts", "loss", "pixels")}

    def draw(params: Any, step: int) -> None:
        some = SubsetSource(source, chosen.astype(int))
        shown = inputs.eval_pass(data, some, view=view)
        batch = sharding.to_devices(next(iter(shown)), mesh)
        images = jax.jit(jnp.copy, out_shardings=whole)(batch["image"])
        found = jax.device_get(judge(params, batch) | {"image": images})
        if jax.process_index() == 0:
            bands = dataclasses.replace(data, display_bands=data.display_bands[:3])
            pictures.mask_grid(
                displayed(bands, found["image"][: len(chosen)]),
                {name: found[name][: len(chosen)] for name in ("truth", "prediction")},
                picture_path(workdir, step),
                ignore_index=data.ignore_index,
            )

    def evaluate(params: Any, step: int) -> dict[str, float]:
        results = results_of_pass(
            lambda batch, _: sums_of(params, batch), with_progress(batches), mesh
        )
        sums = {
            name: np.sum([result[name] for result in results], 0, dtype=dtype)
            for name, dtype in (("counts", "int64"), ("loss", "f8"), ("pixels", "f8"))
        }
        counts = sums["counts"]
        if not counts.any():
            raise UserError(
                f"config.data.eval_split={data.eval_split!r}: all pixels are "
                f"{data.ignore_index} or without data. Expected some that count."
            )
        if config.pictures:
            draw(params, step)
        if jax.process_index() == 0:
            write_table(counts, class_names, workdir / "iou.tsv")
        return {
            "miou": float(np.nanmean(intersection_over_union(counts))),
            "pixel_accuracy": float(np.trace(counts) / counts.sum()),
            "eval_loss": float(sums["loss"] / sums["pixels"]),
        } | batches.bad.metrics("eval_bad_images")

    return evaluate


def write_table(counts: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Write IoU and share of pixels of each class; counts: see `confusion`."""
    lines = ["class\tiou\tshare of pixels"]
    shares = counts.sum(1) / counts.sum()
    for name, iou, share in zip(
        names, intersection_over_union(counts), shares, strict=True
    ):
        lines.append(f"{name}\t{iou:.4f}\t{share:.4f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
