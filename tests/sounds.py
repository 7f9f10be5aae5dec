"""Sounds that tests write."""

import io
from pathlib import Path

import numpy as np
import soundfile

# One second of the sentence ru_0002 of festvox-ru, 16 kHz: see
# simmim_jax/data/bundled/README.md for its source and licence.
SPEECH = Path(__file__).parent / "data" / "views" / "speech.flac"


def speech() -> np.ndarray:
    """Return float32 [16000]."""
    return soundfile.read(SPEECH, dtype="float32")[0]


def tone(seconds=1.0, rate=16_000, frequency=440.0) -> np.ndarray:
    """Return a sine of amplitude 1/2, float32 [n]."""
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * frequency * time) / 2).astype(np.float32)


def encoded(
    samples: np.ndarray, rate=16_000, format="WAV", subtype="PCM_16", **options
) -> bytes:
    """Return samples [n] or [n channels] as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)
    return file.getvalue()


def write_sounds(folder: Path, names) -> None:
    """Write tones of different pitch and length as WAV files."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 0.5 + number % 3 / 4
        path.write_bytes(encoded(tone(seconds, frequency=200.0 + 50 * number)))
