"""Is it worth it? Pre-train, then fine-tune with and without it, side by side."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.checkpoints.disk import make_workdir
from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.config import schema
from simmim_jax.config.schema import Compare, Finetune
from simmim_jax.data.loader.bad_examples import count_lists
from simmim_jax.data.sources.base import labelled
from simmim_jax.monitoring import pictures
from simmim_jax.monitoring.writer import read_metrics, write_json
from simmim_jax.runtime import workdir_lock
from simmim_jax.tasks import classify, inputs, pretrain
from simmim_jax.tasks.accuracy import Accuracy, gain, last_and_best
from simmim_jax.tasks.display import displayed
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.pretrain import picture_path
from simmim_jax.tasks.pretrained import patch_grid, without_memory
from simmim_jax.training import compilation, loop
from simmim_jax.training.run import Run

PREDICTIONS = 8
# Folders of the runs in the workdir.
PARTS = ("pretrain", "scratch", "simmim")


def compare(config: Compare, workdir: Path) -> dict[str, Any]:
    """Run config.pretrain, then config.finetune from scratch and from what it learned.

    Each resumes what its folder of `workdir` holds. Prints a table and returns what it
    also writes to <workdir>/summary.json. The accuracies to compare are those of the
    last step: the best one is chosen by the images that it is tested on. `seconds` are
    those of this call.
    """
    begin = time.perf_counter()
    fresh, restored = arms(config.finetune, workdir / "pretrain")
    runs = {
        "pretrain": pretrain.build(
            config.pretrain, workdir / "pretrain", path="config.pretrain"
        ),
        "scratch": classify.build(fresh, workdir / "scratch", path="config.finetune"),
    }
    check(config, runs["pretrain"], runs["scratch"])
    for notice in runs["scratch"].notices:  # in time to start again with other values
        say(notice)
    with workdir_lock.held(*(make_workdir(workdir / part) for part in PARTS)):
        announce("pre-training, without labels")
        step = loop.train(runs.pop("pretrain")).step
        announce("fine-tuning from scratch")
        loop.train(runs.pop("scratch"))
        announce("fine-tuning with SimMIM")
        simmim = loop.train(
            classify.build(restored, workdir / "simmim", path="config.finetune")
        )
    if jax.process_index():
        return {}
    images = len(inputs.open_split(restored.data, restored.data.eval_split))
    both = {run: last_and_best(workdir / run, images) for run in ("scratch", "simmim")}
    summary = {
        **{f"{run}_top1": last.top1 for run, (last, _) in both.items()},
        **{
            f"{run}_{which}": accuracy.to_dict()
            for run, pair in both.items()
            for which, accuracy in zip(("last", "best"), pair, strict=True)
        },
        "gain_interval": gain(both["scratch"][0], both["simmim"][0]),
        "labels": num_labels(config.finetune),
        "seconds": round(time.perf_counter() - begin, 1),
        "reconstructions": str(picture_path(workdir / "pretrain", step)),
        "curves": str(draw_curves(workdir)),
        "predictions": str(draw_predictions(restored, workdir, simmim.step)),
    }
    write_json(workdir / "summary.json", summary)
    print(f"\n{summary['labels']:,} labels, {table(*both.values())}\n")
    for name in ("reconstructions", "curves", "predictions"):
        print(f"{name:<17}  {summary[name]}")
    print(f"{'summary':<17}  {workdir / 'summary.json'}")
    for part in PARTS:
        for path, count in count_lists(workdir / part).items():
            print(f"{'bad images':<17}  {count:,}, listed in {path}")
    checkpoint = workdir / "simmim" / "checkpoints" / str(simmim.step)
    what = "LINES" if config.finetune.data.view == "text" else "IMAGES"
    predict = shlex.join(["simmim", "predict", f"--checkpoint={checkpoint}", what])
    print(f"{'next: classify':<17}  {predict}")
    return summary


def table(scratch: tuple[Accuracy, Accuracy], simmim: tuple[Accuracy, Accuracy]) -> str:
    """Return the accuracies of both arms, last and best, with what they are worth."""
    lines = [
        f"{scratch[0].images:,} held-out images",
        "                  step     top-1   95 % interval",
    ]
    for name, (last, best) in {"from scratch": scratch, "with SimMIM": simmim}.items():
        for row, accuracy in ((name, last), ("  best step", best)):
            low, high = (100 * bound for bound in accuracy.interval)
            lines.append(
                f"{row:<14}{accuracy.step:>8}{accuracy.top1:>10.2%}"
                f"   {low:.1f}% to {high:.1f}%"
            )
    low, high = (100 * bound for bound in gain(scratch[0], simmim[0]))
    points = 100 * (simmim[0].top1 - scratch[0].top1)
    lines.append(
        f"Difference after the last step: {points:+.2f} points, 95 % interval "
        f"{low:+.1f} to {high:+.1f}"
        + (": it may be chance." if low <= 0 <= high else ".")
    )
    lines.append("The best steps are chosen by the same images; other seeds vary, too.")
    return "\n".join(lines)


def announce(part: str) -> None:
    """Print a headline above the log of a part."""
    say(f"\n== {part}")


def say(text: str) -> None:
    """Print `text`, in one process."""
    if jax.process_index() == 0:
        print(text)


def check(config: Compare, old: Run, new: Run) -> None:
    """Raise UserError for what would end fine-tuning, before pre-training begins."""
    shapes = [compilation.check(run.learner, run.mesh) for run in (old, new)]
    transfer(
        *map(without_memory, shapes),
        source_grid=patch_grid(schema.to_dict(config.pretrain)),
        target_grid=patch_grid(schema.to_dict(config.finetune)),
        first_blocks=config.finetune.init_first_blocks,
    )


def arms(config: Finetune, pretrained: Path) -> tuple[Finetune, Finetune]:
    """Return the fine-tuning from scratch, and from the run in `pretrained`.

    They differ in layer-wise learning-rate decay, too: it protects what lower layers
    have learned, and only slows fresh ones. Only a pre-trained encoder is frozen.
    """
    fresh = dataclasses.replace(
        config,
        init_from="",
        freeze_encoder=False,
        optim=dataclasses.replace(config.optim, layer_decay=1.0),
    )
    return fresh, dataclasses.replace(config, init_from=str(pretrained))


def draw_curves(workdir: Path) -> Path:
    """Draw losses of pre-training and both fine-tunings' accuracies in one picture."""
    return pictures.curves(panels(workdir), workdir / "curves.png")


def panels(workdir: Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return {title: {name: (steps, values)}}, with those of probes where there are."""

    def curve(run: str, metric: str) -> tuple[list[int], list[float]]:
        lines = read_metrics(workdir / run / "metrics.jsonl")
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        return [step for step, _ in points], [value for _, value in points]

    runs = {"from scratch": "scratch", "with SimMIM": "simmim"}
    probes = {
        "Nearest neighbours' top-1": {"held out": curve("pretrain", "knn_top1")},
        "Effective rank": {"held out": curve("pretrain", "effective_rank")},
    }
    return {
        "Pre-training loss": {
            "training": curve("pretrain", "loss"),
            "held out": curve("pretrain", "eval_loss"),
        },
        "Fine-tuning loss": {name: curve(run, "loss") for name, run in runs.items()},
        "Held-out top-1": {name: curve(run, "top1") for name, run in runs.items()},
        **{title: line for title, line in probes.items() if line["held out"][0]},
    }


def num_labels(config: Finetune) -> int:
    """Return the number of labelled images that fine-tuning learns from."""
    source = inputs.open_split(config.data, config.data.train_split)
    return config.data.num_labels or len(labelled(source))


def draw_predictions(config: Finetune, workdir: Path, step: int) -> Path:
    """Draw what the SimMIM classifier predicts for some held-out images."""
    source = labelled(inputs.open_split(config.data, config.data.eval_split))
    predictor = Predictor.load(workdir / "simmim" / "checkpoints" / str(step))
    chosen = np.random.default_rng(config.seed).choice(
        len(source), min(PREDICTIONS, len(source)), replace=False
    )
    examples = [source[int(i)] for i in chosen]
    images = np.stack([predictor.prepare(example["image"]) for example in examples])
    names, probabilities = predictor.top(predictor(images))
    true_names = [predictor.class_names[example["label"]] for example in examples]
    return pictures.prediction_grid(
        displayed(predictor.config.data, images),
        names,
        probabilities,
        workdir / "predictions.png",
        true_names,
    )
