"""What comparisons measure, by what is learned: classes of images, or of pixels."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.config.schema import Finetune, Segment
from simmim_jax.data.sources.base import Source, labelled
from simmim_jax.monitoring import pictures
from simmim_jax.monitoring.writer import read_metrics
from simmim_jax.tasks import classify, inputs, segment
from simmim_jax.tasks.accuracy import Accuracy, gain, last_and_best
from simmim_jax.tasks.display import displayed
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.segment_predict import SegmentPredictor
from simmim_jax.training.run import Run

PREDICTIONS = 8
# Names of the downstream runs, and their folders in the workdir.
ARMS = {"from scratch": "scratch", "with SimMIM": "simmim"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """How the downstream runs of a comparison are built, measured and drawn."""

    build: Callable[..., Run]
    # Key of what is compared in metrics.jsonl, and its name in pictures.
    metric: str
    title: str
    # (config, workdir) -> entries of summary.json, and the table to print.
    results: Callable[[Any, Path], tuple[dict[str, Any], str]]
    # (config, workdir, last step of each run by its folder) -> picture of predictions.
    draw: Callable[[Any, Path, Mapping[str, int]], Path]
    # What `simmim predict` does with the model.
    purpose: str


def kind(config: Finetune | Segment) -> Kind:
    """Return how the downstream runs of this config are compared."""
    return MASKS if isinstance(config, Segment) else CLASSES


def _entries(
    metric: str, results: Mapping[str, tuple[Any, Any]], **more: Any
) -> dict[str, Any]:
    """Return entries of summary.json; results: last and best, by folder."""
    entries = {
        f"{run}_{metric}": getattr(last, metric) for run, (last, _) in results.items()
    }
    for run, (last, best) in results.items():
        entries[f"{run}_last"], entries[f"{run}_best"] = last.to_dict(), best.to_dict()
    return entries | more


# ---- Classes of images ---------------------------------------------------------------


def accuracies(config: Finetune, workdir: Path) -> tuple[dict[str, Any], str]:
    """Return the accuracies of both classifiers, for summary.json and as a table."""
    images = len(labelled(inputs.open_split(config.data, config.data.eval_split)))
    results = {run: last_and_best(workdir / run, images) for run in ARMS.values()}
    scratch, simmim = results.values()
    labels = num_labels(config)
    entries = _entries(
        "top1", results, gain_interval=gain(scratch[0], simmim[0]), labels=labels
    )
    return entries, f"{labels:,} labels, {accuracy_table(scratch, simmim)}"


def num_labels(config: Finetune) -> int:
    """Return the number of labelled images that fine-tuning learns from."""
    source = inputs.open_split(config.data, config.data.train_split)
    return config.data.num_labels or len(labelled(source))


def accuracy_table(
    scratch: tuple[Accuracy, Accuracy], simmim: tuple[Accuracy, Accuracy]
) -> str:
    """Return the accuracies of both arms, last and best, with what they are worth."""
    lines = [
        f"{scratch[0].images:,} held-out images",
        "                  step     top-1   95 % interval",
    ]
    for name, (last, best) in zip(ARMS, (scratch, simmim), strict=True):
        for row, accuracy in ((name, last), ("  best step", best)):
            low, high = (100 * bound for bound in accuracy.interval)
            lines.append(
                f"{row:<14}{accuracy.step:>8}{accuracy.top1:>10.2%}"
                f"   {low:.1f}% to {high:.1f}%"
            )
    low, high = (100 * bound for bound in gain(scratch[0], simmim[0]))
    points = 100 * (simmim[0].top1 - scratch[0].top1)
    lines.append(
        f"Difference after the last step: {points:+.2f} points, 95 % interval "
        f"{low:+.1f} to {high:+.1f}"
        + (": it may be chance." if low <= 0 <= high else ".")
    )
    lines.append("The best steps are chosen by the same images; other seeds vary, too.")
    return "\n".join(lines)


def draw_classes(config: Finetune, workdir: Path, steps: Mapping[str, int]) -> Path:
    """Draw what the SimMIM classifier predicts for some held-out images."""
    source = labelled(inputs.open_split(config.data, config.data.eval_split))
    checkpoint = workdir / "simmim" / "checkpoints" / str(steps["simmim"])
    predictor = Predictor.load(checkpoint)
    chosen = np.random.default_rng(config.seed).choice(
        len(source), min(PREDICTIONS, len(source)), replace=False
    )
    examples = [source[int(i)] for i in chosen]
    images = np.stack([predictor.prepare(example["image"]) for example in examples])
    names, probabilities = predictor.top(predictor(images))
    true_names = [predictor.class_names[example["label"]] for example in examples]
    return pictures.prediction_grid(
        displayed(predictor.config.data, images),
        names,
        probabilities,
        workdir / "predictions.png",
        true_names,
    )


# ---- Classes of pixels ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Agreement with held-out masks at a step: shares in 0..1."""

    step: int
    miou: float
    pixel_accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return dataclasses.asdict(self)


def overlaps(config: Segment, workdir: Path) -> tuple[dict[str, Any], str]:
    """Return how well both runs segment, for summary.json and as a table."""
    results = {run: last_and_best_overlap(workdir / run) for run in ARMS.values()}
    scratch, simmim = results.values()
    masks = config.data.num_masks or len(_masked(config, "train_split"))
    images = len(_masked(config, "eval_split"))
    table = overlap_table(scratch, simmim)
    return (
        _entries("miou", results, masks=masks),
        f"{masks:,} masks, {images:,} held-out images\n{table}",
    )


def _masked(config: Segment, split: str) -> Source:
    """Return the examples with a mask; split: name of its field."""
    source = inputs.open_split(config.data, getattr(config.data, split))
    return segment.with_masks(source, f"config.finetune.data.{split}")[0]


def last_and_best_overlap(workdir: Path) -> tuple[Overlap, Overlap]:
    """Return those of a run's last and best step; of equally good ones the latest."""
    found = [
        Overlap(line["step"], line["miou"], line["pixel_accuracy"])
        for line in read_metrics(workdir / "metrics.jsonl")
        if "miou" in line
    ]
    return found[-1], max(found, key=lambda one: (one.miou, one.step))


def overlap_table(
    scratch: tuple[Overlap, Overlap], simmim: tuple[Overlap, Overlap]
) -> str:
    """Return the mIoU of both arms, last and best."""
    lines = ["                  step      mIoU   pixel accuracy"]
    for name, (last, best) in zip(ARMS, (scratch, simmim), strict=True):
        lines += [
            f"{row:<14}{one.step:>8}{one.miou:>10.2%}{one.pixel_accuracy:>17.2%}"
            for row, one in ((name, last), ("  best step", best))
        ]
    points = 100 * (simmim[0].miou - scratch[0].miou)
    return "\n".join(
        [
            *lines,
            f"Difference after the last step: {points:+.2f} points of mIoU. Pixels of "
            "an image depend on each other:",
            "try other seeds before you believe it. The best steps are chosen by the "
            "same images.",
        ]
    )


def draw_masks(config: Segment, workdir: Path, steps: Mapping[str, int]) -> Path:
    """Draw held-out images with their true masks and those of both runs."""
    models = {
        name: SegmentPredictor.load(workdir / run / "checkpoints" / str(steps[run]))
        for name, run in ARMS.items()
    }
    data = models["with SimMIM"].config.data  # with types and statistics of values
    source, view = segment.held_out_rows(data, _masked(config, "eval_split"))
    chosen = np.linspace(0, len(source) - 1, min(PREDICTIONS, len(source))).astype(int)
    rows = [view(dict(source[int(i)]), np.random.default_rng(0)) for i in chosen]
    images = np.stack([row["image"] for row in rows])
    masks = {"truth": np.stack([row["mask"] for row in rows])}
    for name, model in models.items():
        masks[name] = np.asarray(jax.jit(model.apply)(model.params, images))
    bands = dataclasses.replace(data, display_bands=data.display_bands[:3])
    return pictures.mask_grid(
        displayed(bands, images),
        masks,
        workdir / "predictions.png",
        ignore_index=data.ignore_index,
    )


CLASSES = Kind(
    build=classify.build,
    metric="top1",
    title="top-1",
    results=accuracies,
    draw=draw_classes,
    purpose="classify",
)
MASKS = Kind(
    build=segment.build,
    metric="miou",
    title="mIoU",
    results=overlaps,
    draw=draw_masks,
    purpose="segment",
)
