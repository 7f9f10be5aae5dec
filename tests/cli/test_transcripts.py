"""Subtitles of transcripts."""

from simmim_jax.cli.transcripts import srt
from simmim_jax.tasks.recognize import Span, Transcript


def transcript(*words):
    """Words with their times, as characters."""
    characters = []
    for text, start, end in words:
        if characters:
            characters.append(Span(" ", characters[-1].end, start, 1.0))
        step = (end - start) / len(text)
        characters += [
            Span(c, start + i * step, start + (i + 1) * step, 0.5)
            for i, c in enumerate(text)
        ]
    return Transcript(tuple(characters), 10_000.0)


def test_a_pause_ends_a_line():
    found = srt(
        transcript(("hello", 0, 0.5), ("there", 0.6, 1), ("again", 3661.5, 3662))
    )
    assert found == (
        "1\n00:00:00,000 --> 00:00:01,000\nhello there\n\n"
        "2\n01:01:01,500 --> 01:01:02,000\nagain\n\n"
    )


def test_lines_are_neither_long_nor_slow():
    quick = [(f"word{i:02}", i / 10, i / 10 + 0.1) for i in range(20)]
    lines = srt(transcript(*quick)).split("\n")[2::4]
    assert max(map(len, lines)) <= 42
    assert " ".join(lines).split() == [word for word, *_ in quick]
    slow = [("slow", float(i), i + 0.9) for i in range(12)]
    assert len(srt(transcript(*slow)).split("\n\n")) == 3


def test_silence_has_no_subtitles():
    assert srt(Transcript((), 1.0)) == ""
