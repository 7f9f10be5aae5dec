"""Fine-tuning: teach a pre-trained encoder, or a fresh one, to classify."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simmim_jax.augment import basic
from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.data.loader.pipeline import EvalBatches
from simmim_jax.data.sources.base import Source, SubsetSource, subset
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models import build_classifier, plain
from simmim_jax.models.classifier import Classifier
from simmim_jax.monitoring import pictures
from simmim_jax.runtime import sharding
from simmim_jax.training import inputs, loop, steps
from simmim_jax.training.compilation import Learner


def finetune(config: ConfigDict, workdir: Path) -> loop.Trained:
    """Fine-tunes as `config` says, or goes on with what lies in `workdir`."""
    return loop.train(config, workdir, finetune_task(config, workdir))


def learner(config: ConfigDict, num_examples: int, num_classes: int) -> Learner:
    """What learns in fine-tuning; ValueError where `config` makes no sense."""
    model = model_of(config, num_classes)
    images = jnp.zeros((1, *config.data.image_size, config.data.channels))
    prepare = steps.finetune_prepare(
        num_classes=num_classes,
        label_smoothing=config.label_smoothing,
        mean=config.data.mean,
        std=config.data.std,
        flip=config.data.flip,
        **config.augment,
    )
    return Learner(
        init=lambda key: model.init(key, images)["params"],
        prepare=prepare,
        loss=steps.finetune_loss(model, drop_paths=not config.freeze_encoder),
        plain_loss=steps.finetune_loss(plain(model), drop_paths=False),
        num_examples=num_examples,
        layer_id=model.layer_id,
        layer_decay=config.optim.layer_decay,
        frozen=("encoder",) if config.freeze_encoder else (),
    )


def model_of(config: ConfigDict, num_classes: int) -> Classifier:
    """The encoder of config.model, and a head for so many classes."""
    return build_classifier(num_classes=num_classes, dtype=config.dtype, **config.model)


def finetune_task(config: ConfigDict, workdir: Path) -> loop.Task:
    """What the training loop is to do; ValueError where `config` makes no sense."""
    source = inputs.open_split(config, config.data.train_split)
    class_names = check_classes(config, source)
    if config.data.num_labels:
        source = subset(source, config.data.num_labels, config.seed)
    held_out = inputs.open_split(config, config.data.eval_split)
    if held_out.class_names != class_names:
        raise UserError(
            f"config.data.eval_split={config.data.eval_split!r} has the classes "
            f"{held_out.class_names}, config.data.train_split has {class_names}: "
            f"expected the same. {getattr(held_out, 'unlabelled', '')}".rstrip()
        )
    if config.freeze_encoder and not config.init_from:
        raise UserError(
            "config.freeze_encoder=True with config.init_from='' would keep a random "
            "encoder: name a pre-training run."
        )
    meta: dict[str, Any] = {"class_names": list(class_names)}
    if config.init_from:
        meta["restored_from"] = str(store.find(config.init_from))
    learns = learner(config, len(source), len(class_names))
    model = model_of(config, len(class_names))
    return loop.Task(
        **vars(learns),
        source=source,
        data=inputs.describe(source, held_out, class_names, config.data.batch_size),
        evaluate=evaluation(config, model, inputs.eval_pass(config, held_out, workdir)),
        best="top1",
        mode="max",
        preview=functools.partial(
            draw_augmented, config, workdir, source, learns.prepare
        )
        if config.pictures
        else None,
        restore=functools.partial(restore, config) if config.init_from else None,
        meta=meta,
    )


def check_classes(config: ConfigDict, source: Source) -> tuple[str, ...]:
    """The names of the classes; ValueError where there are none to learn."""
    if len(source.class_names) < 2:
        raise UserError(
            f"config.data.dataset={config.data.dataset!r} has classes "
            f"{list(source.class_names)}: fine-tuning needs labelled images of at "
            "least two classes, such as a folder with a sub-folder for each and no "
            f"image beside them. {getattr(source, 'unlabelled', '')}".rstrip()
        )
    return source.class_names


def draw_augmented(
    config: ConfigDict, workdir: Path, source: Source, prepare: steps.Prepare
) -> Path:
    """Draws <workdir>/augmented.png: cropped images, and what the model sees of them.

    They are taken from all over `source` and augmented as a batch of their own, in
    which CutMix and Mixup mix the first image with the last one, and so on.
    """
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    few = config.copy_and_resolve_references()
    few.data.batch_size = len(chosen) * jax.process_count()
    few.data.num_workers = 0
    shown = SubsetSource(source, chosen.astype(int))
    with contextlib.closing(inputs.train_batches(few, shown)) as batches:
        batch = next(batches)
    key = steps.purpose(jax.random.key(config.seed), "preview")
    seen = jax.jit(prepare)(batch, key)["image"]
    pixels = basic.denormalize(seen, config.data.mean, config.data.std)
    return pictures.augmentation_grid(
        batch["image"], np.asarray(pixels), workdir / "augmented.png"
    )


def restore(config: ConfigDict, params: Any) -> Any:
    """`params` with the encoder of config.init_from; prints what became of it."""
    pretrained, meta = store.load(config.init_from)
    restored, report = transfer(
        pretrained,
        params,
        source_grid=patch_grid(meta["config"]),
        target_grid=patch_grid(config),
        first_blocks=config.init_first_blocks,
    )
    if jax.process_index() == 0:
        report += window_notice(meta["config"], config)
        print(f"from {config.init_from} (step {meta['step']}):\n{report}")
    return restored


def patch_grid(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an image in patches."""
    height, width = config["data"]["image_size"]
    p, q = config["model"]["patch_size"]
    return height // p, width // q


def window_notice(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What to tell of a Swin V2 whose windows are not those it was pre-trained with.

    Its positions are relative to the edge of the window, unless
    model.pretrained_window_sizes says which edge is meant (official fine-tuning does).
    """
    learned, meant = (c["model"].get("pretrained_window_sizes", ()) for c in (old, new))
    if "pretrained_window_sizes" not in new["model"] or any(meant):
        return ""
    before, now = stage_windows(old), stage_windows(new)
    if any(learned):
        before = tuple(learned)
    if before == now:
        return ""
    return (
        f"\npositions: learned in windows of {before}, stretched to {now}; "
        f"config.model.pretrained_window_sizes={before} leaves distances as they were"
    )


def stage_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The window of each stage of a Swin, which is no larger than its grid."""
    grid, model = min(patch_grid(config)), config["model"]
    return tuple(
        min(model["window_size"], -(-grid // 2**stage))
        for stage in range(len(model["depths"]))
    )


def evaluation(
    config: ConfigDict, model: Classifier, batches: EvalBatches
) -> Callable[[Any, int], dict[str, float]]:
    """(params, step) -> {"top1", "top5", "eval_loss"} over exactly the held-out images.

    top1 and top5 are shares in 0..1; top5 is left out below six classes.
    """
    mesh = sharding.make_mesh(**config.mesh)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh, jax.P()))
    def totals(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        images = basic.normalize(batch["image"], config.data.mean, config.data.std)
        with sharding.on_mesh(mesh):
            logits = model.apply({"params": sharding.gathered(params, mesh)}, images)
        labels, weight = batch["label"], batch["weight"]
        _, best = jax.lax.top_k(logits, min(5, model.num_classes))
        hits = best == labels[:, None]
        loss = losses.cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[1]))
        sums = {
            "top1": hits[:, 0] * weight,
            "top5": hits.any(1) * weight,
            "eval_loss": loss * weight,
            "examples": weight,
        }
        return jax.tree.map(jnp.sum, sums)

    def labelled(batches: EvalBatches) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            if (batch["label"][batch["weight"] > 0] < 0).any():
                raise UserError(
                    f"config.data.eval_split={config.data.eval_split!r} has images "
                    "without labels: accuracy needs a labelled split."
                )
            yield batch

    def evaluate(params: Any, step: int) -> dict[str, float]:
        del step
        results = inputs.results_of_pass(
            lambda batch, _: totals(params, batch), labelled(batches), mesh
        )
        sums = jax.tree.map(lambda *x: float(np.sum(x)), *results)
        examples = sums.pop("examples")
        if model.num_classes < 6:
            sums.pop("top5")
        metrics = {name: total / examples for name, total in sums.items()}
        return metrics | batches.bad.metrics("eval_bad_images")

    return evaluate
