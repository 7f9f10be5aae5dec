"""Which utterances of a data set speech to text can learn from, or be measured on."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.codecs.vocabulary import TextRule, Vocabulary
from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.data.views.utterance import frames_of
from simmim_jax.tasks.ctc import frames_needed


@dataclasses.dataclass(frozen=True)
class Utterances:
    """Sounds with their normalised texts and lengths.

    source: of the examples; texts: of each; frames: int [n], those of 10 ms. A sound
    that cannot be read has neither.
    """

    source: Source
    texts: tuple[str, ...]
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, indices: np.ndarray) -> "Utterances":
        """Return some of them, in the order of `indices` int [n]."""
        texts = tuple(self.texts[i] for i in indices.tolist())
        return Utterances(
            SubsetSource(self.source, indices), texts, self.frames[indices]
        )

    def num_labels(self, vocabulary: Vocabulary) -> int:
        """Return the number of labels of the longest text, at least 1."""
        return max([1, *(len(vocabulary.encode(text)) for text in self.texts)])


def read(source: Source, rule: TextRule, longest: int) -> tuple[Utterances, list[str]]:
    """Return the utterances with text that are not too long, and what is left out.

    longest: frames. Reads the header of every sound; one that cannot be read stays, as
    a bad example of the run.
    """

    def look(index: int) -> tuple[str | None, int]:
        try:
            example = source[index]
            text = rule(example.get("text", ""))
            return text, frames_of(example) if text else 0
        except (OSError, BadImage):
            return None, 0

    with ThreadPoolExecutor(num_cpus()) as pool:
        found = list(pool.map(look, range(len(source))))
    texts = tuple(text or "" for text, _ in found)
    frames = np.array([n for _, n in found], int)
    has_text = np.array([text != "" for text, _ in found], bool)
    fits = frames <= longest
    said = []
    if silent := int((~has_text).sum()):
        said.append(f"{silent:,} of {len(texts):,} utterances have no transcript")
    if long := int((has_text & ~fits).sum()):
        said.append(
            f"{long:,} of {len(texts):,} utterances are longer than "
            f"{longest / 100:g} s (config.data.image_size)"
        )
    kept = Utterances(source, texts, frames).chosen(np.flatnonzero(has_text & fits))
    return kept, said


def fitting(
    utterances: Utterances, vocabulary: Vocabulary, frames_of_token: int
) -> tuple[Utterances, list[str]]:
    """Return the utterances whose labels fit their tokens, and what is left out.

    CTC cannot emit a longer text (see `ctc.frames_needed`).
    """
    tokens = -(-utterances.frames // frames_of_token)
    fits = [
        frames_needed(vocabulary.encode(text)) <= count
        for text, count in zip(utterances.texts, tokens.tolist(), strict=True)
    ]
    missing = len(fits) - sum(fits)
    if not missing:
        return utterances, []
    said = f"{missing:,} of {len(fits):,} utterances have more text than tokens of time"
    return utterances.chosen(np.flatnonzero(fits)), [said]


def drawn(utterances: Utterances, count: int, seed: int) -> Utterances:
    """Return `count` of them at random; a smaller choice is part of a larger one."""
    order = np.random.default_rng(seed).permutation(len(utterances))
    return utterances.chosen(np.sort(order[:count]))


def by_length(utterances: Utterances) -> Utterances:
    """Return them with the longest first, so that a batch has little padding."""
    return utterances.chosen(np.argsort(-utterances.frames, kind="stable"))
