"""Views of whole utterances with their transcripts, for speech to text."""

import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.codecs.audio import Sound
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.codecs.vocabulary import TextRule, Vocabulary
from simmim_jax.data.views.base import Spec, View
from simmim_jax.data.views.filter_bank import RATE, empty_bands, log_mel, num_frames


def frames_of(example: dict[str, Any]) -> int:
    """Return the number of frames of a sound, from its header."""
    with Sound(example["image"]) as sound:
        return num_frames(sound.length(RATE))


def spectrogram(example: dict[str, Any], bands: int) -> np.ndarray:
    """Return float32 [bands frames 1] of a whole sound, as `SpectrogramView` does."""
    with Sound(example["image"]) as sound:
        found = log_mel(sound.read(RATE), bands)
    found[:, empty_bands(bands)] = np.nan
    return found.T[::-1, :, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtteranceView(View):
    """A sound from its beginning to its end, and its text as labels.

    size: (bands, frames), NaN stands behind the end; num_labels: of the longest text.
    """

    size: tuple[int, int]
    rule: TextRule
    vocabulary: Vocabulary
    num_labels: int

    @property
    def spec(self) -> dict[str, Spec]:
        """Spectrogram, labels, and how many frames and labels count."""
        number = np.dtype(np.int32)
        return {
            "image": Spec((*self.size, 1), np.dtype(np.float32)),
            "num_frames": Spec((), number),
            "text": Spec((self.num_labels,), number),
            "num_labels": Spec((), number),
        }

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the arrays of `spec`; BadImage for a sound without a frame."""
        del rng
        found = spectrogram(example, self.size[0])
        frames = found.shape[1]
        if not 0 < frames <= self.size[1]:
            raise BadImage(
                "too large" if frames else "empty",
                f"A sound has {frames} frames of 10 ms: expected 1 to {self.size[1]}.",
            )
        image = np.full((*self.size, 1), np.nan, np.float32)
        image[:, :frames] = found
        labels = self.vocabulary.encode(self.rule(example.get("text", "")))
        text = np.zeros(self.num_labels, np.int32)
        text[: len(labels)] = labels
        return {
            "image": image,
            "num_frames": frames,
            "text": text,
            "num_labels": len(labels),
        }
