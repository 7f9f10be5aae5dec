"""Last lines of a run: where its files are, and which command comes next."""

import shlex
from pathlib import Path

from simmim_jax.checkpoints import layout
from simmim_jax.cli.arguments import config_names
from simmim_jax.config.schema import (
    Downstream,
    Pretrain,
    RunConfig,
    Segment,
    Transcribe,
)
from simmim_jax.data.loader.bad_examples import count_lists

_TRANSCRIBE = "transcribe"
# Fine-tuning by files that pre-train, too.
_SAME_FILE = {"small": "small:finetune", _TRANSCRIBE: _TRANSCRIBE}


def ending(
    config: RunConfig, name: str, workdir: Path, step: int, best: int
) -> list[str]:
    """Return the lines of the run in `workdir`, which holds its config.json.

    name: FILE[:ARGUMENT] of the config; step, best: last and best. Of two checkpoints
    the best one comes first: it is what `workdir` stands for.
    """
    lines = []
    for title, path in {
        "checkpoint": workdir / "checkpoints" / str(best),
        "last checkpoint": workdir / "checkpoints" / str(step),
        "picture": workdir / "reconstructions" / f"{step:07d}.png",
        "masks": workdir / "segmentations" / f"{step:07d}.png",
        "IoU by class": workdir / "iou.tsv",
        "augmentation": workdir / "augmented.png",
        "metrics": workdir / "metrics.jsonl",
    }.items():
        if path.exists() and (title != "last checkpoint" or step != best):
            lines.append(f"{title:<17}  {path}")
    for path, count in count_lists(workdir).items():
        lines.append(f"{'bad images':<17}  {count:,}, listed in {path}")
    if isinstance(config, Downstream):
        what = "LINES" if config.data.view == "text" else "IMAGES"
        purpose = "classify"
        if isinstance(config, Segment):
            purpose = "segment"
        elif isinstance(config, Transcribe):
            what, purpose = "SOUNDS", "transcribe"
        predict = ["simmim", "predict", str(workdir), what]
        return [*lines, f"{f'next: {purpose}':<17}  {shlex.join(predict)}"]
    following = finetuning(config, name)
    is_speech = following.partition(":")[0] == _TRANSCRIBE
    has_labels = is_speech or layout.read_record(workdir)["labelled"]
    finetune = [
        *("simmim", "train", f"--config={following}"),
        f"--config.init_from={workdir}",
        f"--config.data.dataset={config.data.dataset if has_labels else 'LABELLED'}",
        *([] if is_speech else _unlike_photographs(config)),
    ]
    return [*lines, f"{'next: fine-tune':<17}  {shlex.join(finetune)}"]


def finetuning(config: Pretrain, name: str) -> str:
    """Return the config that fine-tunes what the config `name` pre-trains.

    It is in the same file, has a similar name, or is that of the encoder's base size,
    which takes the architecture over.
    """
    file, _, argument = name.partition(":")
    stem, smoke = Path(file).stem, "smoke" in argument.split(",")
    similar = (known for known in config_names() if known.startswith(f"{stem}_fine"))
    found = _SAME_FILE.get(stem) or next(similar, f"{config.model.name}_base_finetune")
    if not smoke:
        return found
    return found + (",smoke" if ":" in found else ":smoke")


def _unlike_photographs(config: Pretrain) -> list[str]:
    """Return the flags of images with other channels than configs are made for.

    The checkpoint knows the type and the statistics of their values.
    """
    data = config.data
    if data.channels == 3:
        return []
    names = ["channels", "image_size"]
    if data.view != "image":
        names += ["view", "flip"]
    return [f"--config.data.{name}={getattr(data, name)}" for name in names]
