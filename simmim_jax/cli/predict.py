"""Classify image files with a fine-tuned run.

    simmim predict --checkpoint=runs/mine_classes photo.jpg

Prints the most probable classes of each file, and draws them beside the images. Files
that are not images are reported on standard error and left out; the exit status is then
1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and draw the images with their classes."""
    parser = arguments.parser("predict", __doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="workdir of a fine-tuned run"
    )
    parser.add_argument("--output", default="predictions.png", help="picture to write")
    parser.add_argument("images", nargs="+", help="image files")
    args = parser.parse_args(argv)
    from simmim_jax.monitoring import pictures
    from simmim_jax.tasks import inputs
    from simmim_jax.tasks.predict import Predictor

    try:
        predictor = Predictor.load(args.checkpoint)
    except (OSError, UserError) as error:
        sys.exit(str(error))
    print(f"{args.checkpoint}: {predictor.describe()}")
    prepared = {}
    for path in args.images:
        try:
            prepared[path] = predictor.prepare(Path(path).read_bytes())
        except OSError as error:
            print(f"left out: {error}", file=sys.stderr)
        except UserError as error:
            print(f"left out: {path}: {error}", file=sys.stderr)
    if not prepared:
        sys.exit("none of the files is an image. Expected JPEG, PNG or other images.")
    images = np.stack(list(prepared.values()))
    names, probabilities = predictor.top(predictor(images))
    width = max(map(len, prepared))
    for path, classes, values in zip(prepared, names, probabilities, strict=True):
        ranked = (f"{c} {v:.1%}" for c, v in zip(classes, values, strict=True))
        print(f"{path:<{width}}  {', '.join(ranked)}")
    titles = [Path(p).name for p in prepared]
    shown = inputs.displayed(predictor.config.data, images)
    pictures.prediction_grid(shown, names, probabilities, args.output, titles=titles)
    print(f"picture: {args.output}")
    if len(prepared) < len(set(args.images)):
        sys.exit(1)
