"""Classify images or lines of text, segment images, or transcribe sounds.

    simmim predict runs/mine_classes photo.jpg
    simmim predict runs/mine_classes holiday/ --table=holiday.csv
    simmim predict runs/languages/simmim "Wer ein Recht hat, hat es."
    simmim predict runs/scenes holiday/ --masks=holiday_masks
    simmim predict runs/text talk.wav --srt=subtitles

IMAGES are files, and whatever config.data.dataset may name: folders, archives, lists,
arrays; runs on text take lines and files of them. Prints the most probable classes of
each image, or those above --threshold if it may have several; the numbers of runs that
learned these; of segmentation runs, the classes that cover most of it, whose mask goes
into --masks as a PNG with a palette; of runs that learned speech to text, what is said
in each sound, and how sure that is. --table writes this to a .csv, .parquet or .jsonl
file in place of that, with progress. An interrupted command that writes masks or a
table resumes when it is run again. What is not an image or a sound is reported and left
out; the exit status is then 1.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmim_jax.cli import arguments, masks, transcripts
from simmim_jax.data.sources.paths import printable
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # they import JAX
    from simmim_jax.tasks.parts import Split
    from simmim_jax.tasks.predict import Classified, Predictor

_DRAWN = 64  # images of a picture
# Flags that not every kind of run takes, and what a run learned.
_OWN_FLAGS = {
    "classes": ("table", "every_class", "threshold", "picture"),
    "masks": ("masks",),
    "speech to text": ("table", "picture", "srt"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print, write and draw what a run has learned: classes, masks or text."""
    parser = arguments.parser("predict", __doc__)
    parser.add_argument("run", help="workdir of a trained run, or a checkpoint")
    parser.add_argument(
        "--table", metavar="FILE", help="file to write, .csv, .parquet or .jsonl"
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes an image (%(default)s)"
    )
    parser.add_argument(
        "--every_class",
        action="store_true",
        help="of a table: a column with the probability of each class, too",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of several classes an image: the least probability (0.5)",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE.png",
        help=f"draw the first {_DRAWN} images with their classes, or "
        f"{transcripts.DRAWN} sounds with their characters",
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="of segmentation runs: folder to write to (masks)",
    )
    parser.add_argument(
        "--srt", metavar="FOLDER", help="of sounds: folder to write subtitles to"
    )
    parser.add_argument(
        "--split", action="append", help="splits, repeatable (all that there are)"
    )
    parser.add_argument("--data_dir", default="", help="folder of TFDS data sets")
    parser.add_argument(
        "images", nargs="+", help="image or sound files and data sets, or lines"
    )
    args = parser.parse_args(argv)
    if args.top < 1:
        sys.exit(f"--top={args.top}: expected 1 or more.")
    platforms.leave_out_absent_tpu()
    from simmim_jax.checkpoints import layout

    verb, kind, predict = "classified", "classes", _classify
    with arguments.explained():
        learned = layout.read_meta(args.run)
        if "mask_classes" in learned:
            verb, kind, predict = "segmented", "masks", _segment
        elif "vocabulary" in learned:
            verb, kind, predict = "transcribed", "speech to text", _transcribe
        _check_flags(args, kind)
    resumes = args.table or kind == "masks"
    with arguments.explained(arguments.RESUMES if resumes else "Interrupted."):
        done, left_out = predict(args)
    if left_out:
        listed = f", see {args.table}.left_out.tsv" if args.table else ""
        print(f"{left_out:,} left out, {done:,} {verb}{listed}", file=sys.stderr)
        sys.exit(1)


def _check_flags(args: Any, kind: str) -> None:
    """Raise UserError for flags of runs that learned something else."""
    for flag in itertools.chain.from_iterable(_OWN_FLAGS.values()):
        if getattr(args, flag) and flag not in _OWN_FLAGS[kind]:
            of = " or ".join(name for name, own in _OWN_FLAGS.items() if flag in own)
            raise UserError(
                f"--{flag} is for runs that learned {of}, but '{args.run}' "
                f"learned {kind}: leave it out."
            )


def _classify(args: Any) -> tuple[int, int]:
    """Return the numbers of images that are classified and left out."""
    from simmim_jax.tasks.predict import Predictor, open_images, write_predictions
    from simmim_jax.tasks.target_scores import THRESHOLD

    predictor = Predictor.load(args.run)
    print(f"{args.run}: {predictor.describe()}")
    if predictor.calibration:
        print(f"calibrated: {predictor.calibration.describe()}")
    data = predictor.config.data
    _check_answers(args, predictor)
    threshold = THRESHOLD if args.threshold is None else args.threshold
    splits = open_images(data, args.images, args.split or (), args.data_dir)
    if args.table:
        done, left_out = write_predictions(
            predictor,
            splits,
            args.table,
            plan={"checkpoint": args.run, "images": args.images},
            top=args.top,
            every_class=args.every_class,
            threshold=threshold,
        )
        print(f"table: {args.table}, {done:,} images")
    else:
        done, left_out = _print(predictor, splits, args.top, threshold)
    if args.picture and done:
        print(f"picture: {args.picture}, {_draw(predictor, splits, args.picture)}")
    return done, left_out


def _segment(args: Any) -> tuple[int, int]:
    """Return the numbers of images that are segmented and left out."""
    from simmim_jax.tasks.predict import open_images
    from simmim_jax.tasks.segment_predict import SegmentPredictor

    segmenter = SegmentPredictor.load(args.run)
    print(f"{args.run}: {segmenter.describe()}")
    data = segmenter.config.data
    splits = open_images(data, args.images, args.split or (), args.data_dir)
    plan = {"checkpoint": args.run, "images": args.images}
    return masks.write(segmenter, splits, Path(args.masks or "masks"), plan)


def _transcribe(args: Any) -> tuple[int, int]:
    """Return the numbers of sounds that are transcribed and left out."""
    from simmim_jax.tasks.recognize import Recognizer, open_sounds

    recognizer = Recognizer.load(args.run)
    print(f"{args.run}: {recognizer.describe()}")
    splits = open_sounds(args.images, args.split or (), args.data_dir)
    if args.table:
        plan = {"checkpoint": args.run, "sounds": args.images}
        done, left_out = transcripts.write(
            recognizer, splits, args.table, args.srt, plan
        )
        print(f"table: {args.table}, {done:,} sounds")
    else:
        done, left_out = transcripts.show(recognizer, splits, args.srt)
    if args.srt and done:
        print(f"subtitles: {args.srt}")
    if args.picture and done:
        count = transcripts.draw(recognizer, splits, args.picture)
        print(f"picture: {args.picture}, {count} sounds")
    return done, left_out


def _check_answers(args: Any, predictor: "Predictor") -> None:
    """Raise UserError for flags that mean nothing of what a run learned."""
    if args.threshold is not None and not predictor.has_several:
        raise UserError(
            f"--threshold={args.threshold}: '{args.run}' did not learn several "
            "classes an image (config.loss='sigmoid'). Leave it out."
        )
    for name in ("every_class", "picture"):
        if getattr(args, name) and predictor.has_numbers:
            raise UserError(
                f"--{name}: '{args.run}' learned numbers, which have no "
                "probabilities. Leave it out."
            )


def _answers(
    predictor: "Predictor", logits: np.ndarray, top: int, threshold: float
) -> Iterator[str]:
    """Yield what is said of each image."""
    if predictor.has_numbers:
        for row in predictor.answers(logits):
            yield ", ".join(
                f"{name} {value:.6g}"
                for name, value in zip(predictor.class_names, row, strict=True)
            )
        return
    if predictor.has_several:
        for classes in predictor.above(logits, threshold):
            yield (
                ", ".join(f"{name} {share:.1%}" for name, share in classes)
                or f"no class of {threshold:.0%} or more"
            )
        return
    shown = [predictor.probabilities(logits)]
    if predictor.calibration:
        shown.append(predictor.probabilities(logits, calibrated=True))
    order = np.argsort(-logits, kind="stable")[:, :top]
    for row, ranked in enumerate(order):
        yield ", ".join(
            f"{predictor.class_names[place]} "
            + " / ".join(f"{each[row, place]:.1%}" for each in shown)
            for place in ranked
        )


def _print(
    predictor: "Predictor", splits: Sequence["Split"], top: int, threshold: float
) -> tuple[int, int]:
    """Print a line for each image; return the numbers of images and of bad ones."""
    done, left_out = 0, 0
    for split, found in _classified(predictor, splits):
        names = [
            printable(path or f"{split.dataset} {split.name}[{index}]")
            for path, index in zip(found.paths, found.indices, strict=True)
        ]
        width = max(map(len, names), default=0)
        said = _answers(predictor, found.logits, top, threshold)
        for name, answer in zip(names, said, strict=True):
            print(f"{name:<{width}}  {answer}")
        for index, path, error in found.bad:
            name = printable(path or f"{split.dataset} {split.name}[{index}]")
            reason = getattr(error, "strerror", None) or error
            print(f"left out: {name}: {reason}", file=sys.stderr)
        done += len(names)
        left_out += len(found.bad)
    return done, left_out


def _classified(
    predictor: "Predictor", splits: Sequence["Split"]
) -> Iterator[tuple["Split", "Classified"]]:
    for split in splits:
        for found in predictor.classify(split.source):
            yield split, found


def _draw(predictor: "Predictor", splits: Sequence["Split"], output: str) -> str:
    """Draw the first images that can be read; return how many, in words."""
    from simmim_jax.monitoring import pictures
    from simmim_jax.tasks.display import displayed

    titles: list[str] = []
    images, logits = [], []
    for split, found in _classified(predictor, splits):
        for path, index in zip(found.paths, found.indices, strict=True):
            titles.append(Path(path).name if path else f"{split.name}[{index}]")
        images.append(found.images)
        logits.append(found.logits)
        if len(titles) >= _DRAWN:
            break
    shown = np.concatenate(images)[:_DRAWN]
    names, probabilities = predictor.top(
        predictor.probabilities(np.concatenate(logits)[:_DRAWN])
    )
    pictures.prediction_grid(
        displayed(predictor.config.data, shown),
        names,
        probabilities,
        output,
        titles=None
        if predictor.config.data.view == "text"  # their pictures say the same
        else [printable(title) for title in titles[:_DRAWN]],
    )
    return f"{len(shown)} images"
