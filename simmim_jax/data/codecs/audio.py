"""Sounds: WAV, FLAC, Ogg Vorbis and Opus, MP3, read by libsndfile, resampled by soxr.

Several channels become one, their mean. Samples are in -1..1; floating-point files keep
what is beyond.
"""

import importlib
import io
import math
import struct
from types import ModuleType, TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, TypeGuard

import numpy as np

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.errors import MissingPackageError, UserError

# What is read beyond the end of a part, for the filter that resamples it [seconds].
_MARGIN = 0.05
# What a segment may end behind its file [seconds].
_TOLERANCE = 0.05
# Sizes from here on stand in WAV files of programs that write to a pipe.
_UNKNOWN_SIZE = 0x7FFFF000
_LAST_PAGE = 4  # flag of an Ogg page


class Segment(NamedTuple):
    """A part of a sound file.

    start, end: [seconds]; the end may be infinite.
    """

    path: str
    start: float
    end: float


class Sound:
    """An opened sound file, or a segment of one; `with` closes it.

    rate: of the file [Hz]; channels: of the file; seconds: length of the segment;
    encoding: "WAV", "FLAC", "OGG" or "MP3".
    """

    def __init__(self, data: bytes | Segment):
        """raises: BadImage for what is no sound, OSError for a segment's file."""
        soundfile = import_audio("soundfile")
        start, end = 0.0, math.inf
        if isinstance(data, Segment):
            start, end = data.start, data.end
            self._bytes: BinaryIO = open(data.path, "rb")  # noqa: SIM115
        elif isinstance(data, bytes):
            if not data:
                raise BadImage("empty", "The file is empty.")
            self._bytes = io.BytesIO(data)
        else:
            raise UserError(
                f"An example is of type {type(data).__name__}: expected the bytes of "
                "a sound file, which say the sample rate. Encode it, such as by "
                "soundfile.write, or set config.data.view='image'."
            )
        try:
            self._file = soundfile.SoundFile(self._bytes)
        except soundfile.LibsndfileError as error:
            self._bytes.close()
            raise BadImage(
                "not audio",
                "The file is no sound that libsndfile can read "
                f"({error.error_string}): expected WAV, FLAC, Ogg or MP3.",
            ) from error
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.encoding = self._file.format
        frames = self._file.frames
        self._first = min(round(start * self.rate), frames)
        self._last = round(min(end * self.rate, frames))
        self.seconds = max(0, self._last - self._first) / self.rate
        if not self.seconds:
            self.close()
            raise BadImage("empty", "The sound, or the segment of it, has no samples.")
        is_short = frames / self.rate + _TOLERANCE < end < math.inf
        if is_short or (isinstance(data, bytes) and _is_truncated(data, self.encoding)):
            self.close()
            raise _truncated()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._bytes.close()

    def length(self, rate: int) -> int:
        """Return the number of samples at a rate [Hz]."""
        return int(self.seconds * rate + 1e-6)

    def read(self, rate: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return float32 [n]: `count` samples at a rate [Hz], fewer at the end.

        start: number of the first one; count: None for all that follow.
        raises: BadImage if the file is damaged or has values that are not finite.
        """
        length = self.length(rate)
        count = min(length if count is None else count, length - start)
        scale = self.rate / rate
        first = self._first + round(start * scale)
        margin = 0 if scale == 1 else round(_MARGIN * self.rate)
        last = min(first + math.ceil(count * scale) + margin, self._last)
        samples = self._decode(first, last - first)
        samples = samples[:, 0] if self.channels == 1 else samples.mean(1)
        if scale != 1:
            samples = import_audio("soxr").resample(samples, self.rate, rate)
        return samples[:count]

    def stored(self, seconds: float) -> np.ndarray:
        """Return float32 [frames channels], the beginning as the file has it."""
        frames = min(round(seconds * self.rate), self._last - self._first)
        return self._decode(self._first, frames)

    def _decode(self, first: int, frames: int) -> np.ndarray:
        """Return float32 [frames channels]."""
        soundfile = import_audio("soundfile")
        try:
            self._file.seek(first)
            samples = self._file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadImage(
                "corrupt", f"The sound cannot be decoded ({error.error_string})."
            ) from error
        if len(samples) < frames:
            raise _truncated()
        if not np.isfinite(samples).all():
            raise BadImage("corrupt", "The sound has samples that are NaN or infinite.")
        return samples


def is_sound(data: Any) -> TypeGuard[bytes | Segment]:
    """Whether an example's "image" is a sound: a segment, or bytes that begin so."""
    if isinstance(data, Segment):
        return True
    if not isinstance(data, bytes):
        return False
    is_wave = data.startswith((b"RIFF", b"RF64")) and data[8:12] == b"WAVE"
    # MP3 starts with a tag, or with the 11 set bits of a frame of layer III.
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    return is_wave or is_frame or data.startswith((b"fLaC", b"OggS", b"ID3"))


def import_audio(name: str) -> ModuleType:
    """Return the module soundfile or soxr."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise MissingPackageError(
            f"Sounds need the package {name}: pip install 'simmim_jax[audio]'."
        ) from error


def _is_truncated(data: bytes, encoding: str) -> bool:
    """Whether a file ends early in a way that libsndfile does not report."""
    if encoding == "OGG":
        page = data.rfind(b"OggS")
        return not data[page + 5 : page + 6] or not data[page + 5] & _LAST_PAGE
    if encoding not in ("WAV", "WAVEX"):
        return False
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"data":
            return size < _UNKNOWN_SIZE and place + 8 + size > len(data)
        place += 8 + size + size % 2
    return False


def _truncated() -> BadImage:
    return BadImage(
        "truncated",
        "The sound ends before the length that it, or the end of a segment, declares.",
    )
