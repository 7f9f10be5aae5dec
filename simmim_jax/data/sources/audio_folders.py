"""Folders of sounds, and of speech with transcripts: LJSpeech, Kaldi, LibriSpeech."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from simmim_jax.data.codecs.audio import import_audio
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.folders import (
    Files,
    check_folder,
    list_files,
    open_folder,
)
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.manifests import Row, check_first, open_rows
from simmim_jax.data.sources.paths import AUDIO_ENDINGS, is_audio, split_of
from simmim_jax.data.sources.remote import MAX_BYTES
from simmim_jax.data.sources.stacks import has_files
from simmim_jax.errors import UserError

AUDIO_FILES = Files(is_audio, AUDIO_ENDINGS, "audio 1")
_TRANSCRIPT = ".trans.txt"
_TRANSCRIPTS = Files(
    lambda name: name.endswith(_TRANSCRIPT.encode()), (_TRANSCRIPT,), "transcripts 1"
)


class Layout(NamedTuple):
    """How a folder of speech lists its files and their transcripts.

    matches(folder): whether a folder has this layout; table: file of the list, for
    messages; rows(folder): yields its rows.
    """

    name: str
    matches: Callable[[str], object]
    table: str
    rows: Callable[[str], Iterator[Row]]


def _is_ljspeech(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "metadata.csv")) and os.path.isdir(
        os.path.join(folder, "wavs")
    )


def _ljspeech_rows(folder: str) -> Iterator[Row]:
    """Yield the lines ID|TEXT of metadata.csv, or ID|TEXT|TEXT IN WORDS."""
    for line, text in _lines(folder, "metadata.csv"):
        name, *texts = text.split("|")
        if not texts:
            raise _damaged(folder, "metadata.csv", line, "ID|TEXT")
        yield Row(line, f"wavs/{name}.wav", text=texts[-1].strip())


def _kaldi_folders(folder: str) -> list[str]:
    """Return the folders with a wav.scp: this one, or those in it."""
    if os.path.isfile(os.path.join(folder, "wav.scp")):
        return [""]
    return sorted(path.parent.name for path in Path(folder).glob("*/wav.scp"))


def _kaldi_rows(folder: str) -> Iterator[Row]:
    """Yield the utterances of wav.scp, or their parts in segments, in this order."""
    for name in _kaldi_folders(folder):
        part = os.path.join(folder, name)
        files = dict(_pairs(part, "wav.scp"))
        for line, path in enumerate(files.values(), 1):
            if path.endswith("|"):
                raise _damaged(part, "wav.scp", line, "a file, not a command")
        texts = dict(_pairs(part, "text"))
        whole = [(utterance, f"{utterance} 0 inf") for utterance in files]
        for line, (utterance, place) in enumerate(_pairs(part, "segments") or whole, 1):
            try:
                recording, start, end = place.split()
                yield Row(
                    line,
                    os.path.join(name, files[recording]),
                    split=split_of(name),
                    text=texts.get(utterance, ""),
                    start=float(start),
                    end=float(end),
                )
            except (ValueError, KeyError) as error:
                expected = "UTTERANCE RECORDING START END"
                raise _damaged(part, "segments", line, expected) from error


def _librispeech_rows(folder: str) -> Iterator[Row]:
    """Yield the lines ID TEXT of all transcripts; the first folder says the split."""
    for file in map(os.fsdecode, list_files(folder, _TRANSCRIPTS)):
        top = file.partition("/")[0]
        for line, text in _lines(folder, file):
            name, _, words = text.partition(" ")
            path = os.path.join(os.path.dirname(file), f"{name}.flac")
            yield Row(line, path, split=split_of(top), text=words.strip())


def _pairs(folder: str, name: str) -> list[tuple[str, str]]:
    """Return the first word and the rest of each line, [] if there is no such file."""
    if not os.path.isfile(os.path.join(folder, name)):
        return []
    lines = (text.partition(" ") for _, text in _lines(folder, name))
    return [(first, rest.strip()) for first, _, rest in lines]


def _lines(folder: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text that are not empty, with their numbers."""
    path = os.path.join(folder, name)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, text.strip().replace("\t", " ")


def _damaged(folder: str, name: str, line: int, expected: str) -> UserError:
    return UserError(
        f"{os.path.join(folder, name)!r}, line {line}: expected {expected}. Mend it."
    )


_LAYOUTS = (
    Layout("LJSpeech", _is_ljspeech, "metadata.csv", _ljspeech_rows),
    Layout("Kaldi", _kaldi_folders, "wav.scp", _kaldi_rows),
    Layout(
        "LibriSpeech",
        lambda folder: has_files(folder, _TRANSCRIPTS),
        f"*{_TRANSCRIPT}",
        _librispeech_rows,
    ),
)


# ---- Formats -------------------------------------------------------------------------


def _layout(folder: str) -> Layout | None:
    """Return the layout of a folder with transcripts."""
    if not os.path.isdir(folder):
        return None
    return next((each for each in _LAYOUTS if each.matches(folder)), None)


def open_speech(folder: str, split: str, *, max_bytes: int = MAX_BYTES) -> Source:
    """Open one split of a folder of a known layout, with its transcripts.

    raises: UserError, which names the line, for tables that cannot be read;
    NotFoundError if the first sound does not exist.
    """
    table, rows = _table(folder)
    return open_rows(table, list(rows), split, max_bytes=max_bytes)


def check_speech(folder: str, split: str) -> None:
    """Raise the errors of `open_speech` that concern the first row."""
    del split
    table, rows = _table(folder)
    import_audio("soundfile")
    check_first(table, next(rows, None))


def _table(folder: str) -> tuple[str, Iterator[Row]]:
    """Return the name of a folder's table, and its rows."""
    layout = _layout(folder)
    assert layout is not None
    folder = os.path.abspath(folder)
    return os.path.join(folder, layout.table), layout.rows(folder)


def open_sounds(folder: str, split: str, *, max_bytes: int = MAX_BYTES) -> Source:
    """Open one split of a folder of sounds, as `open_folder` does one of images."""
    return open_folder(folder, split, AUDIO_FILES, max_bytes=max_bytes)


def check_sounds(folder: str, split: str) -> None:
    """Raise the errors of `open_sounds`."""
    import_audio("soundfile")
    check_folder(folder, split, AUDIO_FILES)


SPEECH = Format(
    f"a folder of speech ({', '.join(layout.name for layout in _LAYOUTS)})",
    lambda place: _layout(place) is not None,
    check_speech,
    open_speech,
    takes_max_bytes=True,
)
FOLDER = Format(
    f"a folder of sounds ({'/'.join(AUDIO_ENDINGS)})",
    lambda place: has_files(place, AUDIO_FILES),
    check_sounds,
    open_sounds,
    takes_max_bytes=True,
)
