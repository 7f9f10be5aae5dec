"""Speech to text, few transcripts: from scratch, SimMIM and a BiLSTM, in one table.

    apt-get download festvox-ru && dpkg-deb -x festvox-ru_*.deb speech
    python -m benchmarks.speech_labels --data=speech

99.5 minutes of Russian read by one man; every fifth sentence is held out. For each
seed, pre-trains on all other sounds without text, then learns from 10, 30 and all 80
minutes of transcripts, from scratch and from the pre-trained encoder, with the same
fine-tuning. From all of them a BiLSTM of two layers learns as well, with the same
features, SpecAugment, optimiser, learning rate and CTC loss, for as long as the ViT
from scratch did; nothing was tuned for it. Ten held-out transcripts follow the table.

    apt-get download fillets-ng-data fillets-ng-data-cs
    for package in fillets-ng-data*.deb; do dpkg-deb -x $package game; done
    python -m benchmarks.speech_labels --data=game

does the same with 98 minutes of Czech by several speakers, the dialogues of a game;
the dialogues of every fifth level are held out. Finished runs stay in --workdir, and
the same command resumes; --seed=1 runs one seed alone.
"""

import argparse
import csv
import dataclasses
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from absl import logging
from einops import rearrange
from ml_collections import ConfigDict

from simmim_jax.checkpoints.disk import make_workdir
from simmim_jax.config import durations, schema
from simmim_jax.config.parsing import Duration
from simmim_jax.config.schema import Transcribe
from simmim_jax.configs import transcribe as recipe
from simmim_jax.data.codecs.vocabulary import Vocabulary
from simmim_jax.models import Encoded
from simmim_jax.models.transcriber import Transcriber
from simmim_jax.monitoring.writer import read_metrics, write_json
from simmim_jax.tasks import inputs, transcribe, utterances
from simmim_jax.tasks.api import pretrain
from simmim_jax.tasks.api import transcribe as finetune
from simmim_jax.tasks.compare import arms
from simmim_jax.tasks.transcribe_step import transcribe_loss
from simmim_jax.training import loop
from simmim_jax.training.run import Run, Trained

METHODS = {"from scratch": "scratch", "SimMIM": "simmim", "BiLSTM": "bilstm"}
VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
GAME = "usr/share/games/fillets-ng"
STRING = r'\s*"((?:[^"\\]|\\.)*)"\s*'  # of Lua
HELD_OUT = 5  # one part of this many is held out
PILOT_STEPS = 20
SHOWN = 10
# Error rates of a run, "cer" and "wer"; of each method; of each amount of transcripts.
Rates = dict[str, float]
Results = dict[str, dict[str, Rates]]


class Sentence(NamedTuple):
    """A sound file and what is said; sentences of a part are in the same split."""

    path: Path
    text: str
    part: str


def russian(voice: Path) -> list[Sentence]:
    """Return the sentences of festvox-ru, without the marks of stressed vowels."""
    lines = (voice / "etc/txt.done.data").read_text(encoding="utf-8")
    return [
        Sentence(voice / f"wav/{name}.wav", text.replace("+", ""), name)
        for name, text in re.findall(r'^\( (\S+) "(.*)" \)', lines, re.MULTILINE)
    ]


def czech(game: Path) -> list[Sentence]:
    """Return the dialogues of fillets-ng-data-cs."""
    found = []
    for script in sorted(game.glob("script/*/dialogs_cs.lua")):
        level = script.parent.name
        entries = re.findall(
            rf"dialogId\({STRING},{STRING},{STRING}\)\s*dialogStr\({STRING}\)",
            script.read_text(encoding="utf-8"),
        )
        for name, _, _, text in entries:
            sound = game / f"sound/{level}/cs/{name}.ogg"
            if sound.exists():
                found.append(Sentence(sound, text, level))
    return found


class Corpus(NamedTuple):
    """How the sentences of a package are read, and put into batches."""

    read: Callable[[Path], list[Sentence]]
    frames: int  # of the longest sentence, others are left out [10 ms]
    batch_size: int  # of speech to text


# By the folder that a package has.
CORPORA = {VOICE: Corpus(russian, 1800, 8), GAME: Corpus(czech, 1000, 16)}


def divided(said: list[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Return the sentences to train on, and those held out, without common texts."""
    parts = set(sorted({each.part for each in said})[::HELD_OUT])
    learned = [each for each in said if each.part not in parts]
    texts = {each.text for each in learned}
    held_out = [each for each in said if each.part in parts and each.text not in texts]
    return learned, held_out


def some(said: list[Sentence], minutes: float, seed: int) -> list[Sentence]:
    """Return `minutes` of sentences; a smaller amount is part of a larger. 0: all."""
    if not minutes:
        return said
    order = np.random.default_rng(seed).permutation(len(said))
    seconds = [soundfile.info(said[i].path).duration for i in order]
    return [said[i] for i in order[np.cumsum(seconds) <= 60 * minutes]]


def manifest(file: Path, learned: list[Sentence], held_out: list[Sentence]) -> str:
    """Write a manifest of both splits, and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    splits = {"train": learned, "validation": held_out}
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "text", "split"])
        for split, said in splits.items():
            rows.writerows([each.path, each.text, split] for each in said)
    return str(file)


class BiLSTM(nn.Module):
    """Two bidirectional LSTM layers over the patches of a spectrogram."""

    patch_size: tuple[int, int]
    width: int = 256  # of each direction

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, valid: jax.Array | None
    ) -> Encoded:
        """Encode float[b bands frames 1]; valid: bool[b 1 tokens]; see `ViT`."""
        del train
        frames = self.patch_size[1]
        x = rearrange(images, "b bands (t q) 1 -> b t (q bands)", q=frames)
        lengths = None if valid is None else valid.sum((1, 2))
        for _ in range(2):
            forward = nn.RNN(nn.OptimizedLSTMCell(self.width))
            backward = nn.RNN(nn.OptimizedLSTMCell(self.width))
            x = nn.Bidirectional(forward, backward)(x, seq_lengths=lengths)
        return Encoded(x[:, None], None)


def resolved(run: Run) -> Transcribe:
    """Return the config of a run, with the statistics that it measured."""
    config = schema.parse(run.record["config"], stored=True)
    assert isinstance(config, Transcribe)
    return config


def bilstm(config: Transcribe, workdir: Path) -> Run:
    """Return the run of a config, with a BiLSTM in place of its encoder."""
    run = transcribe.build(config, workdir)
    config = resolved(run)
    vocabulary = Vocabulary(run.record["vocabulary"])
    model = Transcriber(BiLSTM(config.model.patch_size), vocabulary.num_classes)
    heard, _ = utterances.read(
        inputs.open_split(config.data, config.data.eval_split),
        transcribe.rule_of(config),
        config.data.image_size[1],
    )
    images = jnp.zeros((1, *config.data.image_size, 1))
    frames = jnp.ones(1, jnp.int32)
    return dataclasses.replace(
        run,
        learner=dataclasses.replace(
            run.learner,
            init=lambda key: model.init(key, images, frames)["params"],
            loss=transcribe_loss(model),
            plain_loss=transcribe_loss(model),
        ),
        evaluate=transcribe.evaluation(
            config, model, vocabulary, heard, workdir, run.mesh
        ),
    )


def training_seconds(workdir: Path, batch_size: int) -> float:
    """Return how long the steps of a run took, without compilation and evaluation."""
    lines = read_metrics(workdir / "metrics.jsonl")
    timed = [line for line in lines if "images_per_second" in line]
    steps = np.diff([line["step"] for line in timed], prepend=0)
    rates = np.array([line["images_per_second"] for line in timed])
    return float((steps * batch_size / rates).sum())


def train_bilstm(config: Transcribe, like: Path, workdir: Path) -> Trained:
    """Train a BiLSTM for as long as the steps of the run in `like` took."""
    pilot = dataclasses.replace(config, duration=Duration(f"{PILOT_STEPS} steps"))
    folder = make_workdir(workdir.with_name("bilstm-pilot"))
    loop.train(bilstm(pilot, folder))
    batch_size = config.data.batch_size
    a_step = training_seconds(folder, batch_size) / PILOT_STEPS
    steps = round(training_seconds(like, batch_size) / a_step)
    config = dataclasses.replace(config, duration=Duration(f"{steps} steps"))
    return loop.train(bilstm(config, make_workdir(workdir)))


def shortened(config: ConfigDict, length: float) -> None:
    """Scale the length of a run, and of its warm-up."""
    config.duration = durations.scaled(config.duration, length)
    config.optim.warmup = durations.scaled(config.optim.warmup, length)


def run(
    seed: int, corpus: Corpus, said: list[Sentence], args: argparse.Namespace
) -> Results:
    """Return the error rates of one seed.

    The length of fine-tuning grows with the square root of the number of sentences.
    """
    workdir = args.workdir.absolute() / f"seed-{seed}"
    learned, held_out = divided(said)
    config = recipe.get_config("pretrain")
    config.seed = seed
    config.data.dataset = manifest(workdir / "all.csv", learned, held_out)
    shortened(config, args.length)
    pretrain(config, workdir / "pretrain")
    results = {}
    for minutes in args.minutes:
        chosen = some(learned, minutes, seed)
        folder = workdir / f"{minutes:g}-minutes"
        config = recipe.get_config()
        config.seed = seed
        config.data.dataset = manifest(folder / "some.csv", chosen, held_out)
        config.data.image_size = (80, corpus.frames)
        config.data.batch_size = corpus.batch_size
        shortened(config, args.length * math.sqrt(len(chosen) / len(learned)))
        typed = schema.parse(config)
        assert isinstance(typed, Transcribe)
        fresh, restored = arms(typed, workdir / "pretrain")
        runs = [
            finetune(fresh, folder / "scratch"),
            finetune(restored, folder / "simmim"),
        ]
        if not minutes:
            runs.append(train_bilstm(fresh, folder / "scratch", folder / "bilstm"))
        results[f"{minutes:g} min" if minutes else "all"] = {
            method: {name: trained.last[name] for name in ("cer", "wer")}
            for method, trained in zip(METHODS, runs, strict=False)
        }
    return results


def table(results: list[Results]) -> str:
    """Return a Markdown table of means [%], over several seeds ± standard deviation."""
    columns = [(method, rate) for method in METHODS for rate in ("cer", "wer")]
    names = [f"{method}: {rate.upper()}" for method, rate in columns]
    lines = [
        f"| transcripts | {' | '.join(names)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for amount, methods in results[0].items():
        cells = []
        for method, rate in columns:
            if method not in methods:
                cells.append("")
                continue
            values = [100 * result[amount][method][rate] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {amount} | {' | '.join(cells)} |")
    return "\n".join(lines)


def transcripts(folder: Path) -> str:
    """Return held-out references and what each method of a folder heard."""
    heard = {}
    for method, name in METHODS.items():
        if files := sorted((folder / name / "transcripts").glob("*.jsonl")):
            lines = files[-1].read_text(encoding="utf-8").splitlines()
            heard[method] = [json.loads(line) for line in lines]
    shown = []
    first = next(iter(heard.values()))
    for i in range(0, len(first), max(len(first) // SHOWN, 1))[:SHOWN]:
        shown.append(f"{'reference':<12} {first[i]['reference']}")
        shown += [
            f"{name:<12} {lines[i]['hypothesis']}" for name, lines in heard.items()
        ]
    return "\n".join(shown)


def main() -> None:
    """Print the table and ten transcripts, and write <workdir>/speech_labels.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the unpacked folder")
    parser.add_argument("--workdir", type=Path, default=Path("runs/speech_labels"))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[10, 30, 0], help="0: all"
    )
    parser.add_argument(
        "--length", type=float, default=1.0, help="of each run; 0.01: to try it"
    )
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    folder = args.data.absolute()
    place = next((place for place in CORPORA if (folder / place).is_dir()), None)
    if place is None:
        parser.error(f"--data={args.data} has none of {', '.join(CORPORA)}: see --help")
    corpus = CORPORA[place]
    said = corpus.read(folder / place)
    seeds = range(args.seeds) if args.seed is None else [args.seed]
    results = [run(seed, corpus, said, args) for seed in seeds]
    workdir = args.workdir.absolute()
    write_json(workdir / "speech_labels.json", results)
    print(table(results))
    last = workdir / f"seed-{seeds[0]}" / f"{args.minutes[-1]:g}-minutes"
    print(f"\n{transcripts(last)}")


if __name__ == "__main__":
    main()
