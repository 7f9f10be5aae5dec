"""Measure a fine-tuned run: by class, what it confuses, how sure it may be.

    simmim evaluate runs/mine_classes /my/labelled
    simmim evaluate runs/mine_classes /my/labelled --split=test --calibrate

Prints accuracies with 95 % intervals, precision and recall by class, and the
calibration error: how far probabilities are from the share that is right. Of several
classes an image it prints average precision and F1, of numbers the mean absolute error
and R². Writes tables and pictures to --out. --calibrate fits a temperature to these
images and keeps it beside the checkpoint; `simmim predict` then prints calibrated
probabilities, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_jax.cli import arguments
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # it imports JAX
    from simmim_jax.tasks.evaluate import Evaluation
    from simmim_jax.tasks.parts import Split
    from simmim_jax.tasks.predict import Predictor

_CLASSES = 20  # printed
_CONFUSED = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Print an evaluation, and write its tables and pictures."""
    parser = arguments.parser("evaluate", __doc__)
    parser.add_argument("run", help="workdir of a fine-tuned run, or a checkpoint")
    parser.add_argument("dataset", help="labelled images")
    parser.add_argument("--split", default="validation", help="(%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="keep the temperature of these images, which training must not have seen",
    )
    parser.add_argument("--data_dir", default="", help="folder of TFDS data sets")
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.data.sources.targets import targets_of
    from simmim_jax.tasks import calibration, targets
    from simmim_jax.tasks.evaluate import evaluate
    from simmim_jax.tasks.parts import Split
    from simmim_jax.tasks.predict import Predictor
    from simmim_jax.tasks.views import formats

    with arguments.explained():
        predictor = Predictor.load(args.run)
        print(f"{args.run}: {predictor.describe()}")
        data = predictor.config.data
        if args.calibrate and (args.dataset, args.split) == (
            data.dataset,
            data.train_split,
        ):
            raise UserError(
                f"--calibrate with --split={args.split}: the run learned from these "
                "images, of which it is too sure. Name held-out ones."
            )
        source = open_source(
            args.dataset,
            args.split,
            data_dir=args.data_dir,
            formats=formats(data),
            wanted=targets.wanted(predictor.config),
        )
        split = Split(args.dataset, args.split, source)
        if predictor.has_numbers or targets_of(source) is not None:
            _evaluate_targets(predictor, split, args)
            return
        found = evaluate(predictor, split)
        fitted = predictor.calibration
        if args.calibrate:
            kind = predictor.config.loss
            fitted = calibration.calibrate(
                found.logits,
                found.labels,
                kind,
                dataset=args.dataset,
                split=args.split,
            )
            file = calibration.save(fitted, args.run, predictor.step)
        summary = found.write(args.out, fitted)
    _print(found, summary)
    if args.calibrate:
        assert fitted is not None
        print(f"{file}: {fitted.describe()}")
    print(
        f"written to {args.out}: evaluation.json, classes.csv, confusion.csv, .png, "
        "calibration.png"
    )


def _evaluate_targets(predictor: "Predictor", split: "Split", args: Any) -> None:
    from simmim_jax.tasks.evaluate import evaluate_targets

    if args.calibrate:
        raise UserError(
            "--calibrate fits probabilities of one class an image. Leave it out."
        )
    found = evaluate_targets(predictor, split)
    summary = found.write(args.out)
    said = f"{summary['images']:,} images"
    if not predictor.has_numbers:
        low, high = summary["exact_match_interval"]
        said += (
            f", mean average precision {summary['mAP']:.2%}; mean F1 "
            f"{summary['f1']:.3f}; all classes right {summary['exact_match']:.2%}, "
            f"95 % interval {low:.1%} to {high:.1%}"
        )
    print(said)
    if found.left_out:
        print(f"{found.left_out:,} images left out: they cannot be read")
    width = max(len(score.name) for score in found.scores)
    if predictor.has_numbers:
        for score in found.scores:
            print(
                f"{score.name:<{width}}  {score.images:,} images, mean absolute error "
                f"{score.mae:.4g}, 95 % interval {score.mae_low:.4g} to "
                f"{score.mae_high:.4g}; R² "
                + (
                    "not defined, all are equal"
                    if score.r2 is None
                    else f"{score.r2:.3f}, {score.r2_low:.3f} to {score.r2_high:.3f}"
                )
            )
    else:
        scores = found.scores
        if len(scores) > _CLASSES:
            scores = sorted(
                (s for s in scores if s.images), key=lambda s: s.average_precision
            )[:_CLASSES]
            print(f"the {_CLASSES} least recognised classes of {len(found.scores):,}:")
        print(f"{'':<{width}}  images  average precision  precision  recall     F1")
        for score in scores:
            print(
                f"{score.name:<{width}}  {score.images:>6,}  "
                f"{_share(score.average_precision):>17}  "
                f"{_share(score.precision):>9}  {_share(score.recall):>6}  "
                f"{'-' if score.f1 is None else f'{score.f1:.3f}':>5}"
            )
    table = "numbers" if predictor.has_numbers else "classes"
    print(f"written to {args.out}: evaluation.json, {table}.csv")


def _print(found: "Evaluation", summary: dict[str, Any]) -> None:
    from simmim_jax.tasks.evaluate import confused

    low, high = found.accuracy.interval
    print(
        f"{summary['images']:,} images, top-1 {summary['top1']:.2%}, 95 % interval "
        f"{low:.1%} to {high:.1%}; macro F1 {summary['macro_f1']:.3f}; calibration "
        f"error {summary['calibration_error']:.1%}"
    )
    if found.left_out:
        print(f"{found.left_out:,} images left out: they cannot be read")
    scores = found.classes
    if len(scores) > _CLASSES:
        scores = sorted((s for s in scores if s.images), key=lambda s: s.recall or 0)
        scores = scores[:_CLASSES]
        print(f"the {_CLASSES} least recognised classes of {len(found.classes):,}:")
    width = max(len(score.name) for score in scores)
    print(f"{'':<{width}}  images  precision  recall  95 % interval     F1")
    for score in scores:
        interval = (
            f"{score.recall_low:>6.1%} to {score.recall_high:>6.1%}"
            if score.images
            else "-"
        )
        print(
            f"{score.name:<{width}}  {score.images:>6,}  {_share(score.precision):>9}  "
            f"{_share(score.recall):>6}  {interval:>16}  "
            f"{'-' if score.f1 is None else f'{score.f1:.3f}':>5}"
        )
    names = found.predictor.class_names
    for true, predicted, images in confused(found.confusion, _CONFUSED):
        print(f"{names[true]} taken for {names[predicted]}: {images:,} images")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
