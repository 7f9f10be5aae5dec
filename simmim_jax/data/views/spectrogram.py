"""Views of sounds: log-mel spectrograms of a fixed length."""

import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.codecs.audio import Sound
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.views.base import Spec, View
from simmim_jax.data.views.filter_bank import (
    HOP,
    RATE,
    empty_bands,
    log_mel,
    num_samples,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrogramView(View):
    """The middle of a sound, and its label.

    size: (bands, frames). NaN, which is no measurement, stands behind the end of
    shorter sounds and in bands that no sound changes.
    """

    size: tuple[int, int]

    @property
    def spec(self) -> dict[str, Spec]:
        """{"image": [bands frames 1] float32, "label": [] int32}.

        The first row is the highest band, as spectrograms are drawn.
        """
        return {
            "image": Spec((*self.size, 1), np.dtype(np.float32)),
            "label": Spec((), np.dtype(np.int32)),
        }

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the spectrogram, and the label, -1 where there is none."""
        bands, frames = self.size
        count = num_samples(frames)
        with Sound(example["image"]) as sound:
            spare = max(0, sound.length(RATE) - count)
            samples = sound.read(RATE, self.start(spare, rng), count)
        found = log_mel(samples, bands)
        if not len(found):
            raise BadImage(
                "empty",
                f"A sound lasts {1000 * len(samples) / RATE:.0f} ms: expected at least "
                f"{1000 * num_samples(1) / RATE:.0f} ms, which is one frame.",
            )
        image = np.full((*self.size, 1), np.nan, np.float32)
        image[:, : len(found), 0] = found.T[::-1]
        image[empty_bands(bands)[::-1]] = np.nan
        return {"image": image, "label": example["label"]}

    def start(self, spare: int, rng: np.random.Generator) -> int:
        """Return the first sample; spare: samples that are left out.

        Frames are those of the whole sound.
        """
        del rng
        return spare // HOP // 2 * HOP


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSpectrogramView(SpectrogramView):
    """A random part of a sound."""

    def start(self, spare: int, rng: np.random.Generator) -> int:
        """Return the first sample."""
        return int(rng.integers(spare + 1))
