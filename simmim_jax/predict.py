"""Images in, class names and probabilities out.

python -m simmim_jax.predict --checkpoint=<workdir of a fine-tuning run> image.jpg …
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax import augment, checkpoint, visualize
from simmim_jax.data.crop import resize_center_crop
from simmim_jax.data.decode import decode
from simmim_jax.models import build_classifier, plain
from simmim_jax.models.classifier import Classifier

TOP = 5  # classes shown
BATCH = 64  # images classified at once


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A fine-tuned classifier with all it needs to look at an image."""

    model: Classifier
    params: Any
    data: dict[str, Any]  # config.data of its training run
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """From the workdir of a fine-tuning run (its best checkpoint) or a checkpoint.

        ValueError if the run did not train a classifier.
        """
        params, meta = checkpoint.load(path)
        config, class_names = meta["config"], meta.get("class_names")
        if not class_names:
            raise ValueError(
                f"'{path}' is a {config['mode']} run, which learns no classes: "
                "expected the workdir of a run with config.mode='finetune'."
            )
        model = build_classifier(
            num_classes=len(class_names), dtype=config["dtype"], **config["model"]
        )
        # Not as it was trained: a few images are classified anywhere.
        model = plain(model)
        return cls(model, params, config["data"], tuple(class_names))

    def prepare(self, image: bytes | np.ndarray) -> np.ndarray:
        """An encoded image or raw pixels -> uint8[h w c] as the model sees them."""
        pixels = decode(image, self.data["channels"])
        height, width = self.data["image_size"]
        return resize_center_crop(
            pixels, (height, width), self.data["eval_crop"], self.data["interpolation"]
        )

    @functools.cached_property
    def _probabilities(self) -> Callable[[Any, np.ndarray], jax.Array]:
        def probabilities(params: Any, images: np.ndarray) -> jax.Array:
            pixels = augment.normalize(images, self.data["mean"], self.data["std"])
            return jax.nn.softmax(self.model.apply({"params": params}, pixels))

        return jax.jit(probabilities)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8[n h w c], prepared -> float32[n classes], probabilities."""
        parts = [
            np.asarray(self._probabilities(self.params, images[i : i + BATCH]))
            for i in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    def top(
        self, probabilities: np.ndarray
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Names and probabilities of each image's most probable classes, in order."""
        order = np.argsort(-probabilities)[:, :TOP]
        names = [[self.class_names[i] for i in row] for row in order]
        return names, np.take_along_axis(probabilities, order, axis=1).tolist()


def read(predictor: Predictor, path: str) -> np.ndarray:
    """The image file as the model sees it; ValueError names the file."""
    try:
        return predictor.prepare(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, and writes a picture of the images with their classes.

    Files that are no images are left out with a line on standard error, and the exit
    status is 1.
    """
    parser = argparse.ArgumentParser(prog="python -m simmim_jax.predict")
    parser.add_argument(
        "--checkpoint", required=True, help="workdir of a fine-tuned run"
    )
    parser.add_argument("--output", default="predictions.png", help="picture to write")
    parser.add_argument("images", nargs="+", help="image files")
    args = parser.parse_args(argv)
    try:
        predictor = Predictor.load(args.checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    prepared = {}
    for path in args.images:
        try:
            prepared[path] = read(predictor, path)
        except (OSError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not prepared:
        sys.exit("none of the files is an image")
    images = np.stack(list(prepared.values()))
    names, probabilities = predictor.top(predictor(images))
    width = max(map(len, prepared))
    for path, classes, values in zip(prepared, names, probabilities, strict=True):
        ranked = (f"{c} {v:.1%}" for c, v in zip(classes, values, strict=True))
        print(f"{path:<{width}}  {', '.join(ranked)}")
    titles = [Path(p).name for p in prepared]
    visualize.prediction_grid(images, names, probabilities, args.output, titles=titles)
    print(f"picture: {args.output}")
    if len(prepared) < len(set(args.images)):
        sys.exit(1)


if __name__ == "__main__":
    main()
