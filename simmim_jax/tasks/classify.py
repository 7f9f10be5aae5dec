"""Fine-tuning: teach a pre-trained encoder, or a fresh one, to classify."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.config import schema
from simmim_jax.config.schema import Finetune
from simmim_jax.data.loader.pipeline import EvalBatches
from simmim_jax.data.sources.base import (
    Source,
    SubsetSource,
    absent_classes,
    labelled,
    subset,
)
from simmim_jax.data.sources.targets import targets_of
from simmim_jax.data.views.base import View
from simmim_jax.data.views.targets import TargetView
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models import build_classifier, plain
from simmim_jax.models.classifier import Classifier
from simmim_jax.monitoring import pictures
from simmim_jax.runtime import sharding
from simmim_jax.tasks import inputs, precision, pretrained, targets, values
from simmim_jax.tasks.classify_step import (
    class_targets,
    finetune_loss,
    finetune_prepare,
    number_targets,
    several_targets,
)
from simmim_jax.tasks.display import displayed
from simmim_jax.tasks.optimizer import notices, optimizer
from simmim_jax.tasks.resumed import changes_of
from simmim_jax.tasks.views import eval_view, train_view
from simmim_jax.training import steps
from simmim_jax.training.inputs import results_of_pass, with_progress
from simmim_jax.training.run import Evaluate, Learner, Run

# Names of classes in a notice.
_NAMES_SHOWN = 6
# Metric that the best checkpoint is chosen by, by config.loss; others: the least loss.
_BEST = {"softmax": ("top1", "max"), "sigmoid": ("mAP", "max")}


def learner(
    config: Finetune, num_examples: int, num_classes: int
) -> tuple[Learner, Classifier]:
    """Return what learns in fine-tuning, and its model.

    raises: UserError where `config` makes no sense.
    """
    model = build_classifier(
        num_classes=num_classes,
        dtype=precision.of_machine(config.dtype),
        **schema.to_dict(config.model),
    )
    images = jnp.zeros((1, *config.data.image_size, config.data.channels))
    smoothing = config.label_smoothing
    if config.loss == "softmax":
        made = class_targets(num_classes, smoothing)
    elif config.loss == "sigmoid":
        made = several_targets(smoothing)
    else:
        # Measurements without data do not know the numbers.
        scale = config.targets
        made = number_targets(scale.mean or (0.0,), scale.std or (1.0,))
    frozen = ("encoder",) if config.freeze_encoder else ()
    mixes = config.augment.mixup_alpha or config.augment.cutmix_alpha
    return (
        Learner(
            init=lambda key: model.init(key, images)["params"],
            prepare=finetune_prepare(
                config.augment,
                targets=made,
                normalization=values.normalization(config.data),
                flip=config.data.flip,
            ),
            loss=finetune_loss(
                model, config.loss, drop_paths=not config.freeze_encoder
            ),
            plain_loss=finetune_loss(plain(model), config.loss, drop_paths=False),
            batch=inputs.batch_like(config.data, train_view_of(config, num_classes)),
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
            mix_group=config.augment.mix_group if mixes else 0,
            ema_decay=config.ema_decay,
        ),
        model,
    )


def train_view_of(config: Finetune, num_targets: int) -> View:
    """Return the view of training batches, with targets if there are any."""
    return _with_targets(config, train_view(config.data), num_targets)


def _with_targets(config: Finetune, view: View, num_targets: int) -> View:
    if config.loss == "softmax":
        return view
    return TargetView(view=view, num_targets=num_targets)


def build(
    config: Finetune,
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
    wanted = targets.wanted(config)
    if train is None:
        source = inputs.open_split(data, data.train_split, wanted)
    else:
        source = train
    class_names = _check_classes(config, source)
    config, said = values.resolve(config, source, workdir, path)
    data = config.data
    if held_out is None:
        held_out = inputs.open_split(data, data.eval_split, wanted)
    source, held_out, left_out = _leave_out_unlabelled(source, held_out, path)
    if data.num_labels:
        source = subset(source, data.num_labels, config.seed)
    if config.loss != "softmax":
        learned = targets.check(config, source, data.train_split)
        targets.check(config, held_out, data.eval_split)
        begun: Any = values.begun_in(workdir)
        config = targets.standardised(config, learned, class_names, begun)
    if held_out.class_names != class_names:
        raise UserError(
            f"config.data.eval_split={data.eval_split!r} has the classes "
            f"{held_out.class_names}, config.data.train_split has {class_names}: "
            "expected the same. Name two splits of one data set, or pass the names of "
            f"the classes. {getattr(held_out, 'unlabelled', '')}".rstrip()
        )
    record: dict[str, Any] = {
        "config": schema.to_dict(config),
        "class_names": list(class_names),
    }
    learns, model = learner(config, len(source), len(class_names))
    record |= pretrained.record(config, learns)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    view = _with_targets(config, eval_view(data), len(class_names))
    passes = inputs.eval_pass(data, held_out, workdir, view=view)
    if config.loss == "softmax":
        evaluate = evaluation(config, model, passes, mesh)
    else:
        evaluate = targets.evaluation(config, model, class_names, passes, mesh)
    best, mode = _BEST.get(config.loss, ("eval_loss", "min"))
    return Run(
        title="finetune",
        workdir=workdir,
        learner=learns,
        mesh=mesh,
        lengths=inputs.lengths(config, len(source)),
        description=inputs.describe(
            data,
            source,
            held_out,
            class_names,
            "numbers" if config.loss in schema.REGRESSION else "classes",
        ),
        stream=functools.partial(
            inputs.train_batches,
            config,
            source,
            workdir,
            view=train_view_of(config, len(class_names)),
        ),
        evaluate=evaluate,
        best=best,
        mode=mode,
        record=record,
        changes=changes_of(workdir, config, record, len(source)),
        notices=(
            *said,
            *left_out,
            *notices(config, len(source), path),
            *(
                ()
                if config.loss in schema.REGRESSION
                else class_notices(source, held_out, path)
            ),
        ),
        preview=functools.partial(
            draw_augmented, config, workdir, source, learns.prepare
        )
        if config.pictures
        else None,
        restore=functools.partial(pretrained.restore, config)
        if config.init_from
        else None,
        keep_checkpoints=config.keep_checkpoints,
        wandb=config.wandb,
        profile=(config.profile.start_step, config.profile.num_steps),
    )


def _check_classes(config: Finetune, source: Source) -> tuple[str, ...]:
    """Return the names of what is learned; UserError where there is nothing."""
    data = config.data
    if config.loss != "softmax":
        targets.check(config, source, data.train_split)
        return source.class_names
    if targets_of(source) is not None:
        raise UserError(
            "config.loss='softmax' learns one class an image, but labels are of type "
            "float, or several for each image. Expected int [n]; loss='sigmoid' learns "
            "any number of classes, loss='l2' numbers."
        )
    if len(source.class_names) < 2:
        raise UserError(
            f"config.data.dataset={data.dataset!r} has classes "
            f"{list(source.class_names)}: fine-tuning needs labelled images of at "
            "least two classes, such as a folder with a sub-folder for each and no "
            "image beside them. (config.loss='sigmoid' learns several classes an "
            f"image, 'l2' numbers.) {getattr(source, 'unlabelled', '')}".rstrip()
        )
    return source.class_names


def _leave_out_unlabelled(
    source: Source, held_out: Source, path: str
) -> tuple[Source, Source, tuple[str, ...]]:
    """Return the labelled examples of both splits, and how many are left out."""
    kept, said = [], []
    for split, each in (("train_split", source), ("eval_split", held_out)):
        kept.append(labelled(each))
        if missing := len(each) - len(kept[-1]):
            said.append(
                f"{path}.data.{split}: {missing:,} of {len(each):,} images have no "
                "label and are left out"
            )
    return kept[0], kept[1], tuple(said)


def class_notices(source: Source, held_out: Source, path: str) -> tuple[str, ...]:
    """Return what is not learned or not measured, for lack of examples of a class."""
    several = targets_of(source) is not None
    absent_in = targets.absent if several else absent_classes
    metric = "mAP" if several else "top1"
    said = []
    for split, each, effect in (
        ("train_split", source, "are not learned"),
        ("eval_split", held_out, f"do not count in {metric}"),
    ):
        if absent := absent_in(each):
            names = ", ".join(absent[:_NAMES_SHOWN])
            names += ", ..." if len(absent) > _NAMES_SHOWN else ""
            said.append(
                f"{path}.data.{split} has no example of {len(absent):,} of "
                f"{len(each.class_names):,} classes, which {effect}: {names}"
            )
    return tuple(said)


def draw_augmented(
    config: Finetune, workdir: Path, source: Source, prepare: steps.Prepare
) -> Path:
    """Draw <workdir>/augmented.png: cropped images, and what the model sees of them.

    They are taken from all over `source` and augmented as a batch of their own, in
    which CutMix and Mixup mix the first image with the last one, and so on.
    """
    data = config.data
    chosen = np.linspace(0, len(source) - 1, min(config.pictures, len(source)))
    shown = SubsetSource(source, chosen.astype(int))
    size = len(chosen) * jax.process_count()
    with contextlib.closing(
        inputs.train_batches(
            config,
            shown,
            view=train_view_of(config, len(source.class_names)),
            batch_size=size,
            num_workers=0,
        )
    ) as batches:
        batch = next(batches)
    key = steps.purpose(jax.random.key(config.seed), "preview")
    seen = jax.jit(prepare)(batch, key)["image"]
    pixels = values.normalization(data).inverse(seen)
    return pictures.augmentation_grid(
        displayed(data, batch["image"]),
        displayed(data, np.asarray(pixels)),
        workdir / "augmented.png",
    )


def evaluation(
    config: Finetune, model: Classifier, batches: EvalBatches, mesh: jax.sharding.Mesh
) -> Evaluate:
    """Return (params, step) -> {"top1", "top5", "eval_loss"} over the held-out images.

    top1 and top5 are shares in 0..1; top5 is left out below six classes.
    """
    data = config.data
    normalization = values.normalization(data)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh, jax.P()))
    def totals(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        images = normalization(batch["image"])
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
        for batch in with_progress(batches):
            if (batch["label"][batch["weight"] > 0] < 0).any():
                raise UserError(
                    f"config.data.eval_split={data.eval_split!r} has images without "
                    "labels: accuracy needs a labelled split."
                )
            yield batch

    def evaluate(params: Any, step: int) -> dict[str, float]:
        del step
        results = results_of_pass(
            lambda batch, _: totals(params, batch), labelled(batches), mesh
        )
        sums = jax.tree.map(lambda *x: float(np.sum(x)), *results)
        examples = sums.pop("examples")
        if model.num_classes < 6:
            sums.pop("top5")
        metrics = {name: total / examples for name, total in sums.items()}
        return metrics | batches.bad.metrics("eval_bad_images")

    return evaluate
