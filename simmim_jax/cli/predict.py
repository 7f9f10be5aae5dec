"""Classify images, or lines of text, with a fine-tuned run, or segment images.

    simmim predict --checkpoint=runs/mine_classes photo.jpg
    simmim predict --checkpoint=runs/mine_classes holiday/ --table=holiday.csv
    simmim predict --checkpoint=runs/languages/simmim "Wer ein Recht hat, hat es."
    simmim predict --checkpoint=runs/scenes holiday/ --masks=holiday_masks

IMAGES are files, and whatever config.data.dataset may name: folders, archives, lists,
arrays; runs on text take lines and files of them. Prints the most probable classes of
each image. --table writes them to a .csv, .parquet or .jsonl file in place of that,
with progress; an interrupted command resumes when it is run again. A segmentation run
writes a mask of each image into --masks, a PNG with a palette, and prints the classes
that cover most of it. What is not an image is reported and left out; the exit status is
then 1.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.data.sources.paths import is_array, is_image, printable
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # they import JAX
    from simmim_jax.tasks.parts import Split
    from simmim_jax.tasks.predict import Classified, Predictor
    from simmim_jax.tasks.segment_predict import SegmentPredictor

_DRAWN = 64  # images of a picture
_COVERING = 3  # classes printed of a mask


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write the classes of each image, and draw the first ones if asked to."""
    parser = arguments.parser("predict", __doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="workdir of a fine-tuned run, or of a segmentation run",
    )
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
        "--picture",
        metavar="FILE.png",
        help=f"draw the first {_DRAWN} images with their classes",
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        type=Path,
        default=Path("masks"),
        help="folder to write to with a segmentation run (%(default)s)",
    )
    parser.add_argument(
        "--split", action="append", help="splits, repeatable (all that there are)"
    )
    parser.add_argument("--data_dir", default="", help="folder of TFDS data sets")
    parser.add_argument("images", nargs="+", help="image files and data sets, or lines")
    args = parser.parse_args(argv)
    if args.top < 1:
        sys.exit(f"--top={args.top}: expected 1 or more.")
    platforms.leave_out_absent_tpu()
    from simmim_jax.checkpoints import layout

    try:
        is_segmenter = layout.read_meta(args.checkpoint).get("mask_classes")
        left_out = (_segment if is_segmenter else _classify)(args)
    except UserError as error:
        sys.exit(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.exit(f"cannot read or write {error.filename!r}: {error.strerror}")
    except KeyboardInterrupt:
        again = "Run the same command again to resume." if args.table else ""
        sys.exit(f"Interrupted. {again}".strip())
    if left_out:
        print(left_out, file=sys.stderr)
        sys.exit(1)


# ---- Classes -------------------------------------------------------------------------


def _classify(args: Any) -> str:
    """Print or write classes, and draw; return how many were left out, "" for none."""
    from simmim_jax.tasks.predict import Predictor, open_images, write_predictions

    predictor = Predictor.load(args.checkpoint)
    print(f"{args.checkpoint}: {predictor.describe()}")
    if predictor.calibration:
        print(f"calibrated: {predictor.calibration.describe()}")
    splits = open_images(
        predictor.config.data, args.images, args.split or (), args.data_dir
    )
    listed = ""
    if args.table:
        plan = {"checkpoint": args.checkpoint, "images": args.images}
        done, left_out = write_predictions(
            predictor,
            splits,
            args.table,
            plan=plan,
            top=args.top,
            every_class=args.every_class,
        )
        listed = f", see {args.table}.left_out.tsv"
        print(f"table: {args.table}, {done:,} images")
    else:
        done, left_out = _print(predictor, splits, args.top)
    if args.picture and done:
        print(f"picture: {args.picture}, {_draw(predictor, splits, args.picture)}")
    return f"{left_out:,} left out, {done:,} classified{listed}" if left_out else ""


def _print(
    predictor: "Predictor", splits: Sequence["Split"], top: int
) -> tuple[int, int]:
    """Print a line for each image; return the numbers of images and of bad ones."""
    done, left_out = 0, 0
    for split, found in _classified(predictor, splits):
        raw = predictor.probabilities(found.logits)
        shown = [raw]
        if predictor.calibration:
            shown.append(predictor.probabilities(found.logits, calibrated=True))
        names = [
            _name(split, path, index)
            for path, index in zip(found.paths, found.indices, strict=True)
        ]
        width = max(map(len, names), default=0)
        order = np.argsort(-found.logits, kind="stable")[:, :top]
        for row, name in enumerate(names):
            ranked = ", ".join(
                f"{predictor.class_names[place]} "
                + " / ".join(f"{each[row, place]:.1%}" for each in shown)
                for place in order[row]
            )
            print(f"{name:<{width}}  {ranked}")
        for index, path, error in found.bad:
            _leave_out(_name(split, path, index), error)
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


# ---- Masks ---------------------------------------------------------------------------


def _segment(args: Any) -> str:
    """Write masks and print what they show; return how many were left out, or ""."""
    from simmim_jax.tasks.predict import open_images
    from simmim_jax.tasks.segment_predict import SegmentPredictor

    if args.table or args.picture:
        raise UserError(
            f"--table and --picture are for classifiers, but {args.checkpoint!r} "
            "segments images: leave them out, and name a folder with --masks."
        )
    segmenter = SegmentPredictor.load(args.checkpoint)
    print(f"{args.checkpoint}: {segmenter.describe()}")
    splits = open_images(
        segmenter.config.data, args.images, args.split or (), args.data_dir
    )
    taken: dict[Path, str] = {}
    left_out = 0
    for name, file, mask in _masks(segmenter, splits):
        if isinstance(mask, Exception):
            _leave_out(name, mask)
            left_out += 1
            continue
        to = args.masks / file
        if to in taken:
            raise UserError(
                f"{name!r} and {taken[to]!r} have the same mask, '{to}': expected "
                "images of different names. Name other --masks for one of them."
            )
        taken[to] = name
        _write_mask(mask, to, len(segmenter.class_names))
        shares = np.bincount(mask.ravel(), minlength=len(segmenter.class_names))
        most = np.argsort(-shares, kind="stable")[:_COVERING]
        covered = ", ".join(
            f"{segmenter.class_names[i]} {shares[i] / mask.size:.1%}"
            for i in most
            if shares[i]
        )
        print(f"{name}  {printable(str(to))}: {covered}")
    done = len(taken)
    return f"{left_out:,} left out, {done:,} segmented" if left_out else ""


def _masks(
    segmenter: "SegmentPredictor", splits: Sequence["Split"]
) -> Iterator[tuple[str, Path, np.ndarray | UserError | OSError]]:
    """Yield name, file and mask of each image, or the error of one that is none."""
    for split in splits:
        for index in range(len(split.source)):
            path = ""
            mask: np.ndarray | UserError | OSError
            try:
                example = split.source[index]
                path = example.get("path", "")
                mask = next(segmenter.predict([example["image"]]))
            except (OSError, UserError) as error:
                path = path or str(getattr(error, "filename", None) or "")
                mask = error
            yield _name(split, path, index), _mask_file(split, path, index), mask


def _mask_file(split: "Split", path: str, index: int) -> Path:
    """Return where the mask of an image is written, relative to --masks.

    It has the place of the image in its data set, or beside it; without a path, its
    number.
    """
    if not path:
        return Path(split.name, f"{index:06}.png")
    inside, dataset = Path(path).name, os.path.expanduser(split.dataset)
    for root in (os.path.dirname(dataset), dataset):
        if root and path.startswith(f"{root.rstrip('/')}/"):
            inside = path[len(root) :].lstrip("/")
    if is_image(os.fsencode(inside)) or is_array(os.fsencode(inside)):
        inside = os.path.splitext(inside)[0]
    parts = [part for part in Path(inside).parts if part != ".."]  # of an archive
    return Path(*parts[:-1], f"{parts[-1]}.png")


def _write_mask(mask: np.ndarray, path: Path, num_classes: int) -> None:
    """Write class indices [h w]: with a palette, or in 16-bit grey for many classes."""
    from PIL import Image

    from simmim_jax.monitoring.pictures import mask_palette

    path.parent.mkdir(parents=True, exist_ok=True)
    if num_classes > 256:
        Image.fromarray(mask).save(path)
        return
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette(mask_palette().ravel().tolist())
    image.save(path)


# ---- Both ----------------------------------------------------------------------------


def _name(split: "Split", path: str, index: int) -> str:
    """Return the path of an image, or its place in a data set without paths."""
    return printable(path or f"{split.dataset} {split.name}[{index}]")


def _leave_out(name: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or error
    print(f"left out: {name}: {reason}", file=sys.stderr)
