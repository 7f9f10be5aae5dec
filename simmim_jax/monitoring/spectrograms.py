"""Pictures of sounds: spectrograms with their characters below them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simmim_jax.monitoring.pictures import INK, new_figure, save_figure, write_title

# Frames of 10 ms in a line of a picture.
_LINE = 800
_WIDTH, _HEIGHT = 10.0, 1.5  # inches


class Heard(NamedTuple):
    """A sound in a picture.

    spectrogram: float [bands frames], the highest band first; characters: each with the
    frames where it begins and ends.
    """

    title: str
    spectrogram: np.ndarray
    characters: Sequence[tuple[str, float, float]]


def transcript_sheet(sounds: Sequence[Heard], path: str | Path) -> Path:
    """Draw spectrograms, 8 s a line, with aligned characters. Returns: the path."""
    lines = [
        (sound, start)
        for sound in sounds
        for start in range(0, sound.spectrogram.shape[1], _LINE)
    ]
    figure = new_figure(_WIDTH, _HEIGHT * len(lines))
    for row, (sound, start) in enumerate(lines, 1):
        axes = figure.add_subplot(len(lines), 1, row)
        part = sound.spectrogram[:, start : start + _LINE]
        end = start + part.shape[1]
        low, high = np.percentile(sound.spectrogram, (2, 99.5))
        seconds = (start / 100, end / 100)
        axes.imshow(
            part,
            aspect="auto",
            cmap="magma",
            vmin=low,
            vmax=high,
            extent=(*seconds, 0, 1),
        )
        for character, first, last in sound.characters:
            middle = (first + last) / 2
            if start <= middle < end:
                text = axes.text(
                    middle / 100, -0.05, character, ha="center", va="top", fontsize=8
                )
                text.set(color=INK, parse_math=False)
        axes.set(xlim=(seconds[0], seconds[0] + _LINE / 100), yticks=[])
        axes.tick_params(axis="x", labelsize=7, pad=11, color="#999999")
        axes.spines[:].set_visible(False)
        if start == 0:
            write_title(axes, sound.title, INK)
    return save_figure(figure, path)
