"""A fine-tuned classifier with everything that it needs to classify images."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.augment import basic
from simmim_jax.checkpoints import store
from simmim_jax.data.codecs.image import decode
from simmim_jax.data.views.crop import resize_center_crop
from simmim_jax.errors import UserError
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
        params, meta = store.load(path)
        config, class_names = meta["config"], meta.get("class_names")
        if not class_names:
            raise UserError(
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
            pixels = basic.normalize(images, self.data["mean"], self.data["std"])
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
