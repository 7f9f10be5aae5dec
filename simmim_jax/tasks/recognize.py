"""Speech to text with everything that a trained model needs for it."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from simmim_jax.checkpoints import store
from simmim_jax.config import schema
from simmim_jax.config.schema import Transcribe
from simmim_jax.data.codecs.audio import Segment
from simmim_jax.data.codecs.vocabulary import Vocabulary
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.sources.registry import is_dataset, open_all
from simmim_jax.data.views.filter_bank import HOP, RATE
from simmim_jax.data.views.utterance import spectrogram
from simmim_jax.errors import UserError
from simmim_jax.models import build_transcriber, plain
from simmim_jax.models.transcriber import Transcriber
from simmim_jax.tasks import precision, values
from simmim_jax.tasks.ctc_decoding import align
from simmim_jax.tasks.parts import Split
from simmim_jax.tasks.transcribe import bucket, decode

SECONDS_PER_FRAME = HOP / RATE
# Part of a window of a long sound that the next one repeats.
_OVERLAP = 1 / 4


class Span(NamedTuple):
    """A character or word, and when it is heard.

    start, end: [seconds]; confidence: in 0..1, of a character its highest probability,
    of a word the mean of its characters'. It is not calibrated.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What is heard in a sound: its characters, with spaces; seconds: its length."""

    characters: tuple[Span, ...]
    seconds: float

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(character.text for character in self.characters)

    @property
    def confidence(self) -> float:
        """The mean of the characters' confidences, 0 without any."""
        found = [character.confidence for character in self.characters]
        return float(np.mean(found)) if found else 0.0

    @property
    def words(self) -> tuple[Span, ...]:
        """The words, which spaces separate."""
        groups = itertools.groupby(self.characters, lambda span: span.text.isspace())
        return tuple(_joined(list(group)) for is_space, group in groups if not is_space)


@dataclasses.dataclass(frozen=True)
class Recognized:
    """An example of a source, and its transcript and spectrogram or why it has none.

    path: of its file, "" without one.
    """

    index: int
    path: str
    found: tuple[Transcript, np.ndarray] | UserError | OSError


def _joined(spans: list[Span]) -> Span:
    text = "".join(span.text for span in spans)
    confidence = float(np.mean([span.confidence for span in spans]))
    return Span(text, spans[0].start, spans[-1].end, confidence)


@dataclasses.dataclass(frozen=True, repr=False)
class Recognizer:
    """A model of speech to text, its parameters, and how sounds are prepared."""

    model: Transcriber
    params: Any
    config: Transcribe  # of its training run
    vocabulary: Vocabulary
    step: int

    @classmethod
    def load(cls, path: str | Path) -> "Recognizer":
        """Load the workdir of a run (its best checkpoint) or a checkpoint.

        raises: UserError if the run did not learn speech to text.
        """
        params, meta = store.load(path)
        config = schema.single(schema.parse(meta["config"], stored=True))
        if not isinstance(config, Transcribe):
            raise UserError(
                f"'{path}' is a {config.mode} run, which learns no text: expected the "
                "workdir of a run with config.mode='transcribe'."
            )
        vocabulary = Vocabulary(meta["vocabulary"])
        model = build_transcriber(
            num_classes=vocabulary.num_classes,
            dtype=precision.of_machine(config.dtype),
            **schema.to_dict(config.model),
        )
        params = jax.tree.map(jax.numpy.asarray, params)  # onto the device, once
        return cls(plain(model), params, config, vocabulary, meta["step"])

    def __repr__(self) -> str:
        return f"<Recognizer: {self.describe()}>"

    def describe(self) -> str:
        """Return architecture and step of the checkpoint in a line."""
        size = sum(np.size(p) for p in jax.tree.leaves(self.params))
        return (
            f"{self.config.model.name}, {size:,} parameters, step {self.step}, "
            f"{len(self.vocabulary.characters)} characters"
        )

    def listen(
        self, source: Source, indices: range | None = None
    ) -> Iterator[Recognized]:
        """Yield what is heard in a source's examples; indices: None for all of them."""
        for index in range(len(source)) if indices is None else indices:
            path = ""
            found: tuple[Transcript, np.ndarray] | UserError | OSError
            try:
                example = source[index]
                path = example.get("path", "")
                found = self(example["image"])
            except (OSError, UserError) as error:
                path = path or str(getattr(error, "filename", None) or "")
                found = error
            yield Recognized(index, path, found)

    def __call__(self, sound: bytes | Segment) -> tuple[Transcript, np.ndarray]:
        """Return what is heard in a sound file of any length, and its spectrogram.

        The latter is float32 [bands frames], as the model sees it.
        raises: BadImage for what is no sound.
        """
        image = spectrogram({"image": sound}, self.config.data.image_size[0])
        if not image.shape[1]:
            raise UserError("The sound is shorter than a frame of 25 ms.")
        log_probs = np.concatenate([*self._windows(image)])
        labels = decode(log_probs, self.config.beam_width)
        step = self.config.model.patch_size[1] * SECONDS_PER_FRAME
        characters = tuple(
            Span(
                self.vocabulary.decode([each.label]),
                each.start * step,
                each.end * step,
                each.probability,
            )
            for each in align(log_probs, labels)
        )
        seen = np.asarray(values.normalization(self.config.data)(image[None]))
        seconds = image.shape[1] * SECONDS_PER_FRAME
        return Transcript(characters, seconds), seen[0, ..., 0]

    def _windows(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Yield log-probabilities of consecutive tokens, float32 [tokens classes].

        A sound longer than the model's is seen in windows; where two overlap, each
        counts up to the middle, so that both sides have context.
        """
        patch, longest = self.config.model.patch_size[1], self.config.data.image_size[1]
        frames = image.shape[1]
        half = round(longest * _OVERLAP / 2 / patch)  # tokens
        stride = longest - 2 * half * patch
        starts = range(0, max(frames - 2 * half * patch, 1), stride)
        if frames <= longest:
            starts = range(1)
        for start in starts:
            found = self._log_probs(image[:, start : start + longest])
            is_first, is_last = start == 0, start == starts[-1]
            yield found[0 if is_first else half : None if is_last else -half]

    def _log_probs(self, image: np.ndarray) -> np.ndarray:
        patch, longest = self.config.model.patch_size[1], self.config.data.image_size[1]
        frames = image.shape[1]
        padding = bucket(frames, longest, patch) - frames
        padded = np.pad(image, [(0, 0), (0, padding), (0, 0)], constant_values=np.nan)
        found = self._apply(self.params, padded[None], np.array([frames], np.int32))
        return np.asarray(found)[0, : -(-frames // patch)]

    @functools.cached_property
    def _apply(self) -> Callable[[Any, np.ndarray, np.ndarray], jax.Array]:
        normalization = values.normalization(self.config.data)

        @jax.jit
        def apply(params: Any, images: jax.Array, frames: jax.Array) -> jax.Array:
            logits = self.model.apply({"params": params}, normalization(images), frames)
            return jax.nn.log_softmax(logits)

        return apply


def open_sounds(
    names: Sequence[str], splits: Sequence[str] = (), data_dir: str = ""
) -> list[Split]:
    """Open sound files and data sets of sounds, in the order of their names.

    splits: of data sets, (): all.
    raises: UserError for a data set that cannot be opened; files that do not exist are
    bad sounds.
    """
    found = []
    unique = dict.fromkeys(names)  # named twice, transcribed once
    for are_sets, group in itertools.groupby(unique, is_dataset):
        if are_sets:
            for name in group:
                opened = open_all(name, splits, data_dir=data_dir)
                found += [Split(name, key, source) for key, source in opened.items()]
        else:
            paths = Paths([os.fsencode(name) for name in group])
            found.append(Split("", "", FolderSource("", paths, None, ())))
    return found
