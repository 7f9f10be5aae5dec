"""What `simmim predict` does with a run of speech to text: print, draw, write."""

import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_jax.data.sources.paths import AUDIO_ENDINGS, printable

if TYPE_CHECKING:  # they import JAX
    from simmim_jax.tasks.parts import Rows, Split
    from simmim_jax.tasks.recognize import Recognized, Recognizer, Transcript

DRAWN = 16  # sounds of a picture, which has several lines for each
# Lines of subtitles: common limits of the BBC's and Netflix's guidelines.
_LINE_LENGTH, _LINE_SECONDS, _PAUSE = 42, 6.0, 0.8


def show(
    recognizer: "Recognizer", splits: Sequence["Split"], subtitles: str | None
) -> tuple[int, int]:
    """Print the transcript of each sound; return the numbers of sounds and bad ones.

    subtitles: folder to write an .srt file of each to.
    """
    done, left_out = 0, 0
    for split in splits:
        for sound in recognizer.listen(split.source):
            name = printable(
                sound.path or f"{split.dataset} {split.name}[{sound.index}]"
            )
            if isinstance(sound.found, Exception):
                reason = getattr(sound.found, "strerror", None) or sound.found
                print(f"left out: {name}: {reason}", file=sys.stderr)
                left_out += 1
                continue
            transcript, _ = sound.found
            print(f"{name}  {transcript.text}  ({transcript.confidence:.0%})")
            if subtitles:
                _write_srt(subtitles, split, sound, transcript)
            done += 1
    return done, left_out


def write(
    recognizer: "Recognizer",
    splits: Sequence["Split"],
    out: str,
    subtitles: str | None,
    plan: dict[str, Any],
) -> tuple[int, int]:
    """Write a row for each sound, or resume writing; see `write_table`.

    Its words and their times are in a .jsonl or .parquet file alone. subtitles: as in
    `show`.
    """
    import pyarrow

    from simmim_jax.tasks.parts import Rows, write_table
    from simmim_jax.tasks.predict import TABLES

    schema = [
        ("path", pyarrow.string()),
        ("split", pyarrow.string()),
        ("index", pyarrow.int64()),
        ("text", pyarrow.string()),
        ("confidence", pyarrow.float32()),
        ("seconds", pyarrow.float64()),
    ]
    if not out.endswith(".csv"):
        word = {"word": pyarrow.string(), "start": pyarrow.float64()}
        word |= {"end": pyarrow.float64(), "confidence": pyarrow.float64()}
        schema.append(("words", pyarrow.list_(pyarrow.struct(word))))

    def rows(split: "Split", span: range) -> Iterator["Rows"]:
        for sound in recognizer.listen(split.source, span):
            row, bad = [], []
            if isinstance(sound.found, Exception):
                bad = [(sound.index, sound.path, sound.found)]
            else:
                transcript, _ = sound.found
                row = [_row(split, sound, transcript)]
                if subtitles:
                    _write_srt(subtitles, split, sound, transcript)
            yield Rows(pyarrow.Table.from_pylist(row, pyarrow.schema(schema)), bad)

    plan = plan | {"step": recognizer.step, "subtitles": subtitles}
    return write_table(out, splits, rows, TABLES, plan=plan, title="transcribing")


def _row(
    split: "Split", sound: "Recognized", transcript: "Transcript"
) -> dict[str, Any]:
    return {
        "path": printable(sound.path or split.dataset),
        "split": split.name,
        "index": sound.index,
        "text": transcript.text,
        "confidence": transcript.confidence,
        "seconds": round(transcript.seconds, 2),
        "words": [
            {
                "word": word.text,
                "start": round(word.start, 2),
                "end": round(word.end, 2),
                "confidence": round(word.confidence, 4),
            }
            for word in transcript.words
        ],
    }


def draw(recognizer: "Recognizer", splits: Sequence["Split"], output: str) -> int:
    """Draw the first sounds that can be read; return how many."""
    from simmim_jax.monitoring.spectrograms import Heard, transcript_sheet
    from simmim_jax.tasks.recognize import SECONDS_PER_FRAME

    heard = (
        (split, sound, *sound.found)
        for split in splits
        for sound in recognizer.listen(split.source)
        if not isinstance(sound.found, Exception)
    )
    drawn = []
    for split, sound, transcript, spectrogram in itertools.islice(heard, DRAWN):
        title = Path(sound.path).name or f"{split.name}[{sound.index}]"
        spans = [
            (each.text, each.start / SECONDS_PER_FRAME, each.end / SECONDS_PER_FRAME)
            for each in transcript.characters
        ]
        drawn.append(Heard(printable(title), spectrogram, spans))
    transcript_sheet(drawn, output)
    return len(drawn)


# ---- Subtitles -----------------------------------------------------------------------


def _write_srt(
    folder: str, split: "Split", sound: "Recognized", transcript: "Transcript"
) -> None:
    """Write subtitles to FOLDER/NAME.srt, in the folders that a data set has.

    Its number is in the name of a sound that has no file of its own, and its ending
    where sounds of a folder differ by nothing else ("talk.mp3.srt").
    """
    place = os.path.join(os.path.abspath(split.dataset), "")
    path = os.path.abspath(sound.path)
    name = path.removeprefix(place) if split.dataset else Path(sound.path).name
    ending = ""
    if not sound.path or os.path.isabs(name):
        name = os.path.join(split.name, f"{sound.index:06}")
    elif sum(Path(path).with_suffix(e).exists() for e in AUDIO_ENDINGS) > 1:
        ending = Path(name).suffix
    target = Path(folder, name).with_suffix(f"{ending}.srt")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(srt(transcript), encoding="utf-8")


def srt(transcript: "Transcript") -> str:
    """Return subtitles as SubRip text: a number, times and a line of words each."""
    text = io.StringIO()
    for number, (start, end, line) in enumerate(_lines(transcript), 1):
        text.write(f"{number}\n{_time(start)} --> {_time(end)}\n{line}\n\n")
    return text.getvalue()


def _lines(transcript: "Transcript") -> Iterator[tuple[float, float, str]]:
    """Yield start, end and text of lines, which pauses end, and limits of a reader."""
    line: list[Any] = []
    for word in transcript.words:
        length = sum(len(each.text) + 1 for each in line) + len(word.text)
        if line and (
            length > _LINE_LENGTH
            or word.end - line[0].start > _LINE_SECONDS
            or word.start - line[-1].end > _PAUSE
        ):
            yield line[0].start, line[-1].end, " ".join(each.text for each in line)
            line = []
        line.append(word)
    if line:
        yield line[0].start, line[-1].end, " ".join(each.text for each in line)


def _time(seconds: float) -> str:
    """Return HH:MM:SS,mmm."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
