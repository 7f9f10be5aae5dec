"""What a run leaves in its workdir, read when it is resumed, used or compared."""

import dataclasses
import json
import sys
import unittest.mock
from pathlib import Path

from simmim_jax.checkpoints import layout
from simmim_jax.config import schema
from simmim_jax.data.loader.bad_examples import REASONS, BadExample, BadImages
from simmim_jax.monitoring.writer import MetricWriter, read_metrics
from simmim_jax.tasks import architecture
from simmim_jax.tasks.resumed import changes_of
from tests.fuzz.target import Target, write
from tests.tiny_config import typed

# ---- config.json and the meta of checkpoints -----------------------------------------


def _record(mode: str) -> bytes:
    record = {
        "config": schema.to_dict(typed(mode)),
        "encoder": {"name": "vit"},
        "data": {"num_examples": 9500, "class_names": ["ant", "bee"]},
        "class_names": ["ant", "bee"],
        "versions": {"jax": "0.10.2"},
        "git_commit": None,
        "step": 4,
    }
    return json.dumps(record).encode()


def _checkpoint(mode: str, step: int) -> dict[str, bytes]:
    """Return what is read of a checkpoint, by path in its workdir."""
    metrics = json.dumps({layout.QUALITY: 0.5}).encode()
    files = {
        "meta/metadata": _record(mode),
        "metrics/metrics": metrics,
        "params/x": b"",
    }
    return {f"checkpoints/{step}/{name}": content for name, content in files.items()}


def _make_configs(folder: Path) -> None:
    for mode in ("pretrain", "finetune"):
        write(folder / mode, {"config.json": _record(mode)})
        write(folder / mode / "from", _checkpoint("pretrain", 4))


def _read_config(seed: Path) -> None:
    config = typed(seed.name)
    if seed.name == "finetune":
        config = dataclasses.replace(config, init_from=str(seed / "from"))
        architecture.adopt(config, workdir=seed)
    changes_of(seed, config, {}, num_examples=9500)(64)


CONFIG = Target("config of a run", _make_configs, _read_config, damaged="config.json")


def _make_metas(folder: Path) -> None:
    for seed, steps in (("pretrain", (4, 8)), ("once", (4,)), ("finetune", (4,))):
        mode = "finetune" if seed == "finetune" else "pretrain"
        for step in steps:
            write(folder / seed, _checkpoint(mode, step))


def _read_meta(seed: Path) -> None:
    meta = layout.read_meta(seed)
    if seed.name != "finetune":  # what it is fine-tuned from
        config = dataclasses.replace(typed("finetune"), init_from=str(seed))
        architecture.adopt(config)
    else:  # what it predicts with
        schema.single(schema.parse(meta["config"], stored=True))


META = Target("meta of a checkpoint", _make_metas, _read_meta, damaged="met*/met*")


# ---- Logs ----------------------------------------------------------------------------


def _make_metrics(folder: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.5, "lr": None}) for step in range(9)]
    write(folder / "metrics", {"metrics.jsonl": "\n".join(lines).encode() + b"\n"})


def _read_metrics(seed: Path) -> None:
    rows = read_metrics(seed / "metrics.jsonl")
    assert all(isinstance(row["step"], int) for row in rows)
    # TensorBoard's files are another package's, and its thread uses pickle.
    with (
        unittest.mock.patch.dict(sys.modules, tensorboardX=None),
        MetricWriter(seed, total_steps=9, resume_step=4, stream=_Silence()) as writer,
    ):
        writer.write(5, {"loss": 0.5})
    assert read_metrics(seed / "metrics.jsonl")[-1]["step"] == 5


class _Silence:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


METRICS = Target("metrics", _make_metrics, _read_metrics, whole=True)


def _make_bad_images(folder: Path) -> None:
    bad = BadImages("train", path=folder / "list" / "bad_images.tsv")
    (folder / "list").mkdir()
    bad.add([BadExample(i, REASONS[i % 7], f"ant/{i}\t.jpg") for i in range(0, 40, 3)])


def _read_bad_images(seed: Path) -> None:
    path = seed / "bad_images.tsv"
    bad = BadImages("train", path=path)
    bad.add([BadExample(12345, "missing", "ant/new.jpg")])
    assert path.read_bytes().endswith(b"ant/new.jpg\n")


BAD_IMAGES = Target("bad_images.tsv", _make_bad_images, _read_bad_images, whole=True)

TARGETS = (CONFIG, META, METRICS, BAD_IMAGES)
