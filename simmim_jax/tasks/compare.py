"""Is it worth it? Pre-train, then fine-tune with and without it, side by side."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any, TypeVar

import jax

from simmim_jax.checkpoints.disk import make_workdir
from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.config import schema
from simmim_jax.config.schema import Compare, Downstream
from simmim_jax.data.loader.bad_examples import count_lists
from simmim_jax.monitoring import pictures
from simmim_jax.monitoring.writer import read_metrics, write_json
from simmim_jax.runtime import workdir_lock
from simmim_jax.tasks import compared, pretrain
from simmim_jax.tasks.compared import ARMS, Kind
from simmim_jax.tasks.pretrain import picture_path
from simmim_jax.tasks.pretrained import patch_grid, without_memory
from simmim_jax.training import compilation, loop
from simmim_jax.training.run import Run

Some = TypeVar("Some", bound=Downstream)

# Folders of the runs in the workdir.
PARTS = ("pretrain", *ARMS.values())


def compare(config: Compare, workdir: Path) -> dict[str, Any]:
    """Run config.pretrain, then config.finetune from scratch and from what it learned.

    Each resumes what its folder of `workdir` holds. Prints a table and returns what it
    also writes to <workdir>/summary.json. The accuracies, or mIoU, to compare are those
    of the last step: the best one is chosen by the images that it is tested on.
    `seconds` are those of this call.
    """
    begin = time.perf_counter()
    kind = compared.kind(config.finetune)
    fresh, restored = arms(config.finetune, workdir / "pretrain")
    runs = {
        "pretrain": pretrain.build(
            config.pretrain, workdir / "pretrain", path="config.pretrain"
        ),
        "scratch": kind.build(fresh, workdir / "scratch", path="config.finetune"),
    }
    check(config, runs["pretrain"], runs["scratch"])
    for notice in runs["scratch"].notices:  # in time to start again with other values
        say(notice)
    with workdir_lock.held(*(make_workdir(workdir / part) for part in PARTS)):
        announce("pre-training, without labels")
        steps = {"pretrain": loop.train(runs.pop("pretrain")).step}
        announce("fine-tuning from scratch")
        steps["scratch"] = loop.train(runs.pop("scratch")).step
        announce("fine-tuning with SimMIM")
        simmim = kind.build(restored, workdir / "simmim", path="config.finetune")
        steps["simmim"] = loop.train(simmim).step
    if jax.process_index():
        return {}
    results, table = kind.results(restored, workdir)
    summary = {
        **results,
        "seconds": round(time.perf_counter() - begin, 1),
        "reconstructions": str(picture_path(workdir / "pretrain", steps["pretrain"])),
        "curves": str(draw_curves(workdir, kind)),
        "predictions": str(kind.draw(restored, workdir, steps)),
    }
    write_json(workdir / "summary.json", summary)
    print(f"\n{table}\n")
    for name in ("reconstructions", "curves", "predictions"):
        print(f"{name:<17}  {summary[name]}")
    print(f"{'summary':<17}  {workdir / 'summary.json'}")
    for part in PARTS:
        for path, count in count_lists(workdir / part).items():
            print(f"{'bad images':<17}  {count:,}, listed in {path}")
    checkpoint = workdir / "simmim" / "checkpoints" / str(steps["simmim"])
    what = "LINES" if config.finetune.data.view == "text" else "IMAGES"
    predict = shlex.join(["simmim", "predict", str(checkpoint), what])
    print(f"{f'next: {kind.purpose}':<17}  {predict}")
    return summary


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


def arms(config: Some, pretrained: Path) -> tuple[Some, Some]:
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


def draw_curves(workdir: Path, kind: Kind) -> Path:
    """Draw losses of pre-training and both fine-tunings' metrics in one picture."""
    return pictures.curves(panels(workdir, kind), workdir / "curves.png")


def panels(
    workdir: Path, kind: Kind
) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return {title: {name: (steps, values)}}, with those of probes where there are."""

    def curve(run: str, metric: str) -> tuple[list[int], list[float]]:
        lines = read_metrics(workdir / run / "metrics.jsonl")
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        return [step for step, _ in points], [value for _, value in points]

    probes = {
        "Nearest neighbours' top-1": {"held out": curve("pretrain", "knn_top1")},
        "Effective rank": {"held out": curve("pretrain", "effective_rank")},
    }
    return {
        "Pre-training loss": {
            "training": curve("pretrain", "loss"),
            "held out": curve("pretrain", "eval_loss"),
        },
        "Fine-tuning loss": {name: curve(run, "loss") for name, run in ARMS.items()},
        f"Held-out {kind.title}": {
            name: curve(run, kind.metric) for name, run in ARMS.items()
        },
        **{title: line for title, line in probes.items() if line["held out"][0]},
    }
