"""Seconds of sound a second and core: this input pipeline beside librosa's.

    python3 -m venv others
    others/bin/pip install torch librosa
    python -m benchmarks.audio_pipeline --torch=others/bin/python

Makes pre-training batches of bundled:speech, random windows of 2.56 s as log-mel
spectrograms of 80 bands, from WAV and FLAC files of 16 kHz and from WAV files of 44.1
kHz, which are resampled: ours by this package, the others by a torch DataLoader with
librosa.load (of the window alone, by soundfile and soxr) and its melspectrogram. Each
runs in a process of its own on one core, with one thread for linear algebra, they take
turns, and CPU time counts, so that other work on the machine does not. Ratios are
medians over turns.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.input_pipeline import Pipeline, in_turns, ratio, work

BATCH, BANDS, FRAMES = 8, 80, 256
SECONDS = 2.575  # of 256 frames of 25 ms every 10 ms
PASSES = 4  # over the files, in a turn
# Name, sample rate [Hz].
FORMATS = {"wav": 16_000, "flac": 16_000, "wav44": 44_100}


def write_formats(folder: Path) -> None:
    """Write the bundled training sentences as each of `FORMATS`."""
    import soundfile

    from simmim_jax.data.codecs.audio import Sound
    from simmim_jax.data.sources.registry import open_source

    source = open_source("bundled:speech", "train")
    for name, rate in FORMATS.items():
        place = folder / name / "train"
        place.mkdir(parents=True)
        for index in range(len(source)):
            with Sound(source[index]["image"]) as sound:
                samples = sound.read(rate)
            file = place / f"{index:04}.{name.rstrip('4')}"
            soundfile.write(file, samples, rate)


def ours(place: Path) -> Callable[[], int]:
    """This package's training iterator."""
    from simmim_jax.data.loader.pipeline import train_iterator
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.data.views.spectrogram import RandomSpectrogramView

    source = open_source(str(place), "train")
    view = RandomSpectrogramView(size=(BANDS, FRAMES))
    iterator = train_iterator(
        source, view, batch_size=BATCH, seed=0, num_workers=0, num_threads=1
    )

    def one_pass() -> int:
        batches = PASSES * len(source) // BATCH
        for _ in range(batches):
            next(iterator)
        return batches * BATCH

    return one_pass


def librosa(place: Path) -> Callable[[], int]:
    """A DataLoader of one worker, in its process."""
    import librosa
    import numpy as np
    import torch

    torch.set_num_threads(1)
    files = sorted(map(str, place.rglob("*.*")))
    rng = np.random.default_rng(0)

    class Windows(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            spare = max(0.0, librosa.get_duration(path=files[index]) - SECONDS)
            samples, _ = librosa.load(
                files[index],
                sr=16_000,
                offset=rng.uniform(0, spare),
                duration=SECONDS,
            )
            power = librosa.feature.melspectrogram(
                y=samples,
                sr=16_000,
                n_fft=512,
                win_length=400,
                hop_length=160,
                center=False,
                n_mels=BANDS,
                fmin=20,
            )
            image = np.zeros((BANDS, FRAMES), np.float32)
            found = np.log(np.maximum(power, 1e-10))[:, :FRAMES]
            image[:, : found.shape[1]] = found
            return image

    loader = torch.utils.data.DataLoader(Windows(), BATCH, shuffle=True, drop_last=True)

    def one_pass() -> int:
        return sum(len(batch) for _ in range(PASSES) for batch in loader)

    return one_pass


MAKERS = {"ours": ours, "librosa": librosa}


def measure(place: Path, torch: str, turns: int) -> dict[str, list[float]]:
    """Return seconds of sound a second of CPU time, by pipeline and turn."""
    pythons = {"ours": sys.executable, "librosa": torch}
    pipelines = {
        name: Pipeline(name, python, place, script=__file__)
        for name, python in pythons.items()
    }
    rates = in_turns(pipelines, turns)
    return {name: [SECONDS * rate for rate in turn] for name, turn in rates.items()}


def main() -> None:
    """Print a table of the formats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work[0], Path(args.work[1]), MAKERS)
    # The threads of librosa's products would wait for each other on one core.
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}
    results = {}
    print("| files | ours, seconds of sound a second | librosa | ours over it |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        write_formats(Path(temporary))
        for name in FORMATS:
            rates = measure(Path(temporary, name), args.torch, args.turns)
            results[name] = ratio(rates, "ours", "librosa")
            theirs = statistics.median(rates.get("librosa", [float("nan")]))
            print(
                f"| {name} | {statistics.median(rates['ours']):,.0f} | "
                f"{theirs:,.0f} | {results[name]} |",
                flush=True,
            )
    if args.json:
        print(json.dumps(results))
    return None


if __name__ == "__main__":
    main()
