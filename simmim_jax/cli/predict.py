"""Classify image files, or lines of text, with a fine-tuned run.

    simmim predict --checkpoint=runs/mine_classes photo.jpg
    simmim predict --checkpoint=runs/mine_classes holiday/ --table=holiday.csv
    simmim predict --checkpoint=runs/languages/simmim "Wer ein Recht hat, hat es."

Prints the most probable classes of each file, and draws the first 64 images beside
them. A folder stands for the images in it and in its sub-folders. Runs on text take
lines, and .txt files of them. Files that are not
images are reported on standard error and left out; the exit status is then 1.
"""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # it imports JAX
    from simmim_jax.tasks.predict import Predictor


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each image, and draw the first ones with their classes."""
    parser = arguments.parser("predict", __doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="workdir of a fine-tuned run"
    )
    parser.add_argument(
        "--output", default="predictions.png", help="picture to write (%(default)s)"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=64,
        metavar="N",
        help="images to draw at most; 0: none (%(default)s)",
    )
    parser.add_argument(
        "--table",
        metavar="FILE.csv",
        help="file to write with the probability of every class",
    )
    parser.add_argument(
        "images", nargs="+", help="image files and folders, or lines of text"
    )
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.tasks.predict import Predictor

    try:
        predictor = Predictor.load(args.checkpoint)
        print(f"{args.checkpoint}: {predictor.describe()}")
        _predict(predictor, args)
    except UserError as error:
        sys.exit(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.exit(f"cannot read or write {error.filename!r}: {error.strerror}")


def _predict(predictor: "Predictor", args: Any) -> None:
    """Print, write and draw batch by batch: memory does not grow with the images."""
    is_text = predictor.config.data.view == "text"
    files = _Files(args.images, is_text)
    width = max((len(_text(path)) for path in files.paths), default=0)
    drawn: list[tuple[str, np.ndarray, np.ndarray]] = []
    count = 0
    table_path = args.table or os.devnull
    with open(
        table_path, "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "probability", *predictor.class_names])
        for path, image, probabilities in predictor.stream(files.paths, files.leave):
            names, values = predictor.top(probabilities[None])
            ranked = zip(names[0], values[0], strict=True)
            print(
                f"{_text(path):<{width}}  "
                + ", ".join(f"{name} {value:.1%}" for name, value in ranked)
            )
            table.writerow([path, names[0][0], probabilities.max(), *probabilities])
            if count < args.pictures:
                drawn.append((path, image, probabilities))
            count += 1
    if not count:
        sys.exit(f"none of {files.left_out:,} classified" if files.left_out > 1 else 1)
    if args.table:
        print(f"table: {args.table}")
    if drawn:
        _draw(predictor, drawn, args.output)
        more = f" (the first {len(drawn):,}; --pictures={count} draws all {count:,})"
        print(f"picture: {args.output}{more if len(drawn) < count else ''}")
    if files.left_out:
        print(f"{files.left_out:,} left out, {count:,} classified", file=sys.stderr)
        sys.exit(1)


class _Files:
    """The files in the paths of a command line, and the number of those left out.

    is_text: whether paths are lines of text, or files of them.
    """

    def __init__(self, named: Sequence[str], is_text: bool):
        self.left_out = 0
        self._is_text = is_text
        # Files that are named twice are classified once.
        self.paths = list(dict.fromkeys(self._paths(named)))

    def _paths(self, named: Sequence[str]) -> Iterator[str]:
        from simmim_jax.data.sources import text

        for path in named:
            if self._is_text and path.endswith(".txt"):
                yield from filter(None, map(str.strip, text.read_lines(path)))
            elif self._is_text or not os.path.isdir(path):
                yield path
            else:
                yield from self._inside(path)

    def _inside(self, folder: str) -> Iterator[str]:
        from simmim_jax.data.sources import folders, npy

        kinds = (folders.IMAGE_FILES, npy.ARRAY_FILES)
        found = (folders.list_files(folder, kind) for kind in kinds)
        inside = next(filter(None, found), [])
        if not inside:
            self.leave(folder, UserError("a folder without images"))
        yield from (os.path.join(folder, os.fsdecode(name)) for name in inside)

    def leave(self, path: str, error: Exception) -> None:
        """Report a file that cannot be classified."""
        self.left_out += 1
        reason = getattr(error, "strerror", None) or error
        print(f"left out: {_text(path)}: {reason}", file=sys.stderr)


def _draw(
    predictor: "Predictor",
    drawn: Sequence[tuple[str, np.ndarray, np.ndarray]],
    output: str,
) -> None:
    from simmim_jax.monitoring import pictures
    from simmim_jax.tasks.display import displayed

    paths, images, probabilities = zip(*drawn, strict=True)
    pictures.prediction_grid(
        displayed(predictor.config.data, np.stack(images)),
        *predictor.top(np.stack(probabilities)),
        output,
        titles=None
        if predictor.config.data.view == "text"  # their pictures say the same
        else [_text(Path(path).name) for path in paths],
    )


def _text(path: str) -> str:
    """Return a path that can be printed: names need not be valid UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()
