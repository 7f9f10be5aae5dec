"""A segmentation model with everything that it needs to write masks."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from simmim_jax.checkpoints import store
from simmim_jax.config import schema
from simmim_jax.config.schema import Segment
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.windows import tile
from simmim_jax.errors import UserError
from simmim_jax.models import plain, segmenter
from simmim_jax.models.segmenter import Segmenter
from simmim_jax.tasks import values
from simmim_jax.tasks.segment import model_of
from simmim_jax.tasks.views import decoding_of, mean_pixel, window_view

BATCH = 8  # windows predicted at once


@dataclasses.dataclass(frozen=True, repr=False)
class SegmentPredictor:
    """A segmentation model, its parameters, and how its images are prepared."""

    model: Segmenter
    params: Any
    config: Segment  # of its training run
    class_names: tuple[str, ...]
    step: int

    @classmethod
    def load(cls, path: str | Path) -> "SegmentPredictor":
        """Load the workdir of a run (its best checkpoint), or a checkpoint.

        raises: UserError if the run did not learn to segment.
        """
        params, meta = store.load(path)
        config = schema.single(schema.parse(meta["config"], stored=True))
        if not isinstance(config, Segment):
            raise UserError(
                f"'{path}' is a {config.mode} run, which learns no masks: expected the "
                "workdir of a run with config.mode='segment'."
            )
        names = tuple(meta["mask_classes"])
        model = plain(model_of(config, len(names)))
        params = jax.tree.map(jnp.asarray, params)  # onto the device, once
        return cls(model, params, config, names, meta["step"])

    def __repr__(self) -> str:
        return f"<SegmentPredictor: {self.describe()}>"

    def describe(self) -> str:
        """Return architecture and step of the checkpoint in a line."""
        height, width = self.config.data.image_size
        size = sum(np.size(p) for p in jax.tree.leaves(self.params))
        what = "windows" if self.config.data.eval_windows else "images"
        return (
            f"{self.config.model.name}, {size:,} parameters, step {self.step}, {what} "
            f"of {height}x{width}, {len(self.class_names):,} classes"
        )

    def predict(
        self, images: Iterable[str | Path | bytes | np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield the class of each pixel of each image, uint16 [h w].

        images: paths, encoded images or arrays [h w c] of any size. With
        config.data.eval_windows they are predicted at their own resolution, otherwise
        resized to config.data.image_size, and the classes back to the nearest pixel.
        raises: UserError or OSError for what is not an image.
        """
        for image in images:
            if isinstance(image, str | Path):
                image = Path(image).read_bytes()
            pixels = decode(image, decoding_of(self.config.data))
            if self.config.data.eval_windows:
                yield self._by_windows(pixels)
            else:
                classes = self._classes(self._prepare(pixels)[None])[0]
                size = pixels.shape[1::-1]
                resized = Image.fromarray(classes.astype(np.int32)).resize(
                    size, Image.Resampling.NEAREST
                )
                yield np.asarray(resized, np.uint16)

    def _by_windows(self, pixels: np.ndarray) -> np.ndarray:
        size, fill = self.config.data.image_size, mean_pixel(self.config.data)
        windows = tile(pixels.shape[:2], size)
        found = np.empty(pixels.shape[:2], np.uint16)
        for first in range(0, len(windows), BATCH):
            part = windows[first : first + BATCH]
            cut = [self._prepare(window.cut(pixels, size, fill)) for window in part]
            for window, classes in zip(part, self._classes(np.stack(cut)), strict=True):
                found[window.rows, window.columns] = classes[window.own()]
        return found

    def _prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return decoded pixels as the model sees them before they are normalised."""
        example = {"image": pixels, "label": NO_LABEL}
        return self._view(example, np.random.default_rng(0))["image"]

    @functools.cached_property
    def _view(self) -> Callable[..., dict[str, Any]]:
        return window_view(self.config.data).image

    def _classes(self, images: np.ndarray) -> np.ndarray:
        """Return int[n h w] of at most BATCH prepared images [n h w c]."""
        count = 1 if len(images) == 1 else BATCH  # each number is compiled
        padded = np.zeros((count, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        return np.asarray(self._jitted(self.params, padded))[: len(images)]

    @functools.cached_property
    def _jitted(self) -> Callable[[Any, np.ndarray], jax.Array]:
        return jax.jit(self.apply)

    def apply(self, params: Any, images: jax.Array | np.ndarray) -> jax.Array:
        """Return int32[n h w] of prepared images [n h w c], for JAX to trace."""
        pixels = values.normalization(self.config.data)(images)
        logits, _ = self.model.apply({"params": params}, pixels)
        return segmenter.resized(logits, images.shape[1:3]).argmax(-1).astype(jnp.int32)
