"""Transcripts: normalised text, and its characters as numbers."""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable

import numpy as np

from simmim_jax.errors import UserError

# Typographic apostrophes, which transcripts mix with the typewriter's.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u02bc\uff07"), "'")


@dataclasses.dataclass(frozen=True)
class TextRule:
    """How transcripts are normalised, references of an evaluation included.

    Unicode NFC, any white space as one space, none at the ends. casefold: without
    differences of case (Unicode's default case folding). punctuation: keep it; else
    characters of the categories P and S become spaces, but for an apostrophe between
    two letters. Control and format characters, such as soft hyphens, are dropped.
    """

    casefold: bool = True
    punctuation: bool = False

    def __call__(self, text: str) -> str:
        """Return the normalised text."""
        text = unicodedata.normalize("NFC", text.translate(_APOSTROPHES))
        if self.casefold:
            text = unicodedata.normalize("NFC", text.casefold())
        kept = "".join(self._kept(text, i) for i in range(len(text)))
        return " ".join(kept.split())

    def _kept(self, text: str, i: int) -> str:
        character = text[i]
        kind = unicodedata.category(character)
        if character.isspace():
            return " "
        if kind in ("Cc", "Cf"):
            return ""
        if self.punctuation or kind[0] not in "PS":
            return character
        around = text[i - 1 : i] + text[i + 1 : i + 2]
        is_inside = character == "'" and len(around) == 2 and around.isalpha()
        return character if is_inside else " "


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters, numbered from 1: 0 is the blank of CTC."""

    characters: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Vocabulary":
        """Return the vocabulary of normalised transcripts, in the order of Unicode.

        raises: UserError where there is no character.
        """
        found = "".join(sorted(set().union(*texts)))
        if not found:
            raise UserError(
                "The transcripts of config.data.train_split are empty: expected text. "
                "Name a data set with transcripts, or keep what the rule of "
                "config.text drops."
            )
        return cls(found)

    @property
    def num_classes(self) -> int:
        """Characters and the blank."""
        return len(self.characters) + 1

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {c: number for number, c in enumerate(self.characters, 1)}

    def encode(self, text: str) -> np.ndarray:
        """Return int32 [n] in 1..len(characters); characters it lacks are left out."""
        numbers = [self._numbers[c] for c in text if c in self._numbers]
        return np.array(numbers, np.int32)

    def decode(self, labels: Iterable[int]) -> str:
        """Return the text of labels in 1..len(characters)."""
        return "".join(self.characters[label - 1] for label in labels)
