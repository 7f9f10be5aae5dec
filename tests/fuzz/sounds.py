"""Sounds of every encoding, and the tables of folders of speech."""

import importlib.util
from pathlib import Path

import numpy as np

from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.sources.recordings import RecordingSource
from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.survey.inspect import inspect
from simmim_jax.data.views.spectrogram import RandomSpectrogramView, SpectrogramView
from tests.fuzz.images import read_examples
from tests.fuzz.target import Target, write

_VIEWS = SpectrogramView(size=(40, 12)), RandomSpectrogramView(size=(128, 4))
_ENCODINGS = {
    "wav 8": ("WAV", "PCM_U8", 16_000),
    "wav 24": ("WAV", "PCM_24", 44_100),
    "wav float": ("WAV", "FLOAT", 8_000),
    "wav adpcm": ("WAV", "MS_ADPCM", 22_050),
    "flac": ("FLAC", "PCM_16", 16_000),
    "vorbis": ("OGG", "VORBIS", 22_050),
    "opus": ("OGG", "OPUS", 48_000),
    "mp3": ("MP3", "MPEG_LAYER_III", 44_100),
}


def _make(folder: Path) -> None:
    from tests.sounds import encoded, tone

    for name, (format, subtype, rate) in _ENCODINGS.items():
        sides = np.stack([tone(0.3, rate), -tone(0.3, rate) / 2], axis=1)
        data = encoded(sides, rate, format=format, subtype=subtype)
        write(folder / name, {"sound.wav": data})


def _read(seed: Path) -> None:
    source = FolderSource(str(seed), Paths([b"sound.wav"]), None, ())
    parts = RecordingSource(source, ("said",), np.array([[0.05, 0.25]]))
    for view in _VIEWS:
        read_examples(source, view)
        read_examples(parts, view)


def _make_tables(folder: Path) -> None:
    from tests.sounds import encoded, tone

    sound = encoded(tone(0.3))
    names = [f"{i}.wav" for i in range(4)]
    sounds = {f"wavs/{name}": sound for name in names}
    write(
        folder / "ljspeech",
        sounds | {"metadata.csv": b"".join(b"%d|one|two\n" % i for i in range(4))},
    )
    scp = "".join(f"u{i} wavs/{name}\n" for i, name in enumerate(names))
    segments = "".join(f"u{i} u{i} 0.0 0.2\n" for i in range(4))
    tables = {"wav.scp": scp, "segments": segments, "text": scp}
    write(folder / "kaldi", sounds | {k: v.encode() for k, v in tables.items()})


def _read_tables(seed: Path) -> None:
    for split in ("train", "validation"):
        read_examples(open_source(str(seed), split), _VIEWS[0])
    inspect(str(seed))


_ALL = (
    Target("sound", _make, _read),
    Target("speech", _make_tables, _read_tables, damaged="[mwst]*"),
)
TARGETS = _ALL if importlib.util.find_spec("soundfile") else ()
