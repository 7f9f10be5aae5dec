"""A fine-tuned classifier with everything that it needs to classify images."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.checkpoints import store
from simmim_jax.config import schema
from simmim_jax.config.schema import Finetune
from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.errors import UserError
from simmim_jax.models import build_classifier, plain
from simmim_jax.models.classifier import Classifier
from simmim_jax.tasks import values
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.views import content, eval_view

TOP = 5  # classes shown
BATCH = 64  # images classified at once


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A classifier, its parameters, and how its images are prepared."""

    model: Classifier
    params: Any
    config: Finetune  # of its training run
    class_names: tuple[str, ...]
    step: int

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Load the workdir of a fine-tuning run (its best checkpoint) or a checkpoint.

        raises: UserError if the run did not train a classifier.
        """
        params, meta = store.load(path)
        class_names = meta.get("class_names")
        if not class_names:
            raise UserError(
                f"'{path}' is a {meta['config']['mode']} run, which learns no classes: "
                "expected the workdir of a run with config.mode='finetune'."
            )
        config = schema.single(schema.parse(meta["config"], stored=True))
        assert isinstance(config, Finetune)
        model = build_classifier(
            num_classes=len(class_names),
            dtype=config.dtype,
            **schema.to_dict(config.model),
        )
        # Without what saves memory in training: a few images are classified anywhere.
        return cls(plain(model), params, config, tuple(class_names), meta["step"])

    def describe(self) -> str:
        """Return architecture and step of the checkpoint in a line."""
        height, width = self.config.data.image_size
        size = sum(np.size(p) for p in jax.tree.leaves(self.params))
        return (
            f"{self.config.model.name}, {size:,} parameters, step {self.step}, images "
            f"of {height}x{width}, {len(self.class_names):,} classes"
        )

    def prepare(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        """Return an image as the model sees it: [h w c].

        image: a path, an encoded image or its pixels; with config.data.view="text", a
        line.
        raises: UserError or OSError for what is not an image.
        """
        data = self.config.data
        example = {"image": content(data, image), "label": NO_LABEL}
        return eval_view(data)(example, np.random.default_rng(0))["image"]

    def apply(self, params: Any, images: jax.Array | np.ndarray) -> jax.Array:
        """Return float32[n classes] of prepared images [n h w c], for JAX to trace."""
        pixels = values.normalization(self.config.data)(images)
        logits = self.model.apply({"params": params}, pixels)
        if self.config.probabilities == "sigmoid":
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits)

    @functools.cached_property
    def _probabilities(self) -> Callable[[Any, np.ndarray], jax.Array]:
        return jax.jit(self.apply)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32[n classes], the probabilities of prepared images [n h w c]."""
        parts = [
            self._of_few(images[i : i + BATCH]) for i in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    def _of_few(self, images: np.ndarray) -> np.ndarray:
        # Padded to a power of two, because every number of images is compiled.
        size = 1 << (len(images) - 1).bit_length()
        padded = np.zeros((size, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        return np.asarray(self._probabilities(self.params, padded))[: len(images)]

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder, for features."""
        return Encoder.of(self.params, self.config, self.step)

    def embed(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return what the head sees of each image, float32 [n, d]: `Encoder.embed`."""
        return self.encoder.embed(images)

    def stream(
        self, paths: Sequence[str], on_error: Callable[[str, Exception], None]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield path, prepared image [h w c] and probabilities [classes] of each file.

        paths: with config.data.view="text", lines of text in place of them.
        on_error: called with a file that is not an image, which is left out. No more
        than one batch of images is in memory.
        """

        def prepared(path: str) -> np.ndarray | Exception:
            try:
                return self.prepare(path)
            except (OSError, UserError) as error:
                return error

        with ThreadPoolExecutor(num_cpus()) as pool:
            for first in range(0, len(paths), BATCH):
                part = paths[first : first + BATCH]
                images = {}
                for path, image in zip(part, pool.map(prepared, part), strict=True):
                    if isinstance(image, Exception):
                        on_error(path, image)
                    else:
                        images[path] = image
                if images:
                    results = self(np.stack(list(images.values())))
                    yield from zip(images, images.values(), results, strict=True)

    def top(
        self, probabilities: np.ndarray
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Return names and probabilities of the most probable classes, in order."""
        order = np.argsort(-probabilities)[:, :TOP]
        names = [[self.class_names[i] for i in row] for row in order]
        return names, np.take_along_axis(probabilities, order, axis=1).tolist()

    def predict(
        self, images: list[str | Path | bytes | np.ndarray]
    ) -> list[dict[str, float]]:
        """Return the probability of each class, most probable first, for each image.

        images: paths, encoded images or arrays [h w c] of any size; with
        config.data.view="text", lines.
        raises: UserError or OSError for what is not an image.
        """
        prepared = [self.prepare(image) for image in images]
        return [
            dict(
                sorted(
                    zip(self.class_names, map(float, row), strict=True),
                    key=lambda item: -item[1],
                )
            )
            for row in self(np.stack(prepared))
        ]
