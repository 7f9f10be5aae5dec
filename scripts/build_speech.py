"""Build simmim_jax/data/bundled/speech: 20 minutes of Russian with text and phones.

Source: the Debian package festvox-ru 0.5+dfsg-6 (MIT-Festival), 620 sentences read by
one man at 16 kHz, with their text and the times of their phones. Every fifth sentence
is encoded as Opus; one in six of these is for validation.

    apt-get download festvox-ru && dpkg-deb -x festvox-ru_*.deb ROOT
    python scripts/build_speech.py --root ROOT --out simmim_jax/data/bundled/speech
"""

import argparse
import csv
import pathlib
import re
from collections.abc import Iterator

import soundfile

VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
STRIDE, VALIDATION = 5, 6
QUALITY = 0.92  # about 25 kbit/s
# Around the middle of a phone: a little more than 64 frames, 25 ms every 10 ms.
CONTEXT = 0.33  # seconds
MIN_PHONES = 20  # of a class, in training


def texts(voice: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield names and texts, without the marks of stressed vowels."""
    lines = (voice / "etc/txt.done.data").read_text(encoding="utf-8").splitlines()
    for line in lines:
        name, text = re.fullmatch(r'\( (\S+) "(.*)" \)', line.strip()).groups()
        yield name, text.replace("+", "")


def phones(file: pathlib.Path) -> Iterator[tuple[float, float, str]]:
    """Yield start, end [seconds] and name of each phone."""
    start = 0.0
    _, _, lines = file.read_text(errors="replace").partition("#\n")
    for line in lines.splitlines():
        end, _, name = line.split()[:3]
        yield start, float(end), name
        start = float(end)


def write(path: pathlib.Path, columns: list[str], rows: list[tuple]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def main() -> None:
    """Write sounds and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    voice = args.root / VOICE
    args.out.mkdir(parents=True, exist_ok=True)
    sentences, found = [], []
    for place, (name, text) in enumerate(list(texts(voice))[::STRIDE]):
        split = "train" if place % VALIDATION else "validation"
        samples, rate = soundfile.read(voice / f"wav/{name}.wav", dtype="float32")
        path, seconds = f"{name}.opus", len(samples) / rate
        soundfile.write(
            args.out / path,
            samples,
            rate,
            format="OGG",
            subtype="OPUS",
            compression_level=QUALITY,
        )
        sentences.append((path, text, split))
        for start, end, phone in phones(voice / f"lab/{name}.lab"):
            first, last = (start + end) / 2 - CONTEXT, (start + end) / 2 + CONTEXT
            if first >= 0 and last <= seconds:
                found.append((path, f"{first:.4f}", f"{last:.4f}", phone, split))
    train = [phone for *_, phone, split in found if split == "train"]
    found = [row for row in found if train.count(row[3]) >= MIN_PHONES]
    write(args.out / "sentences.csv", ["path", "text", "split"], sentences)
    write(args.out / "phones.csv", ["path", "start", "end", "label", "split"], found)


if __name__ == "__main__":
    main()
