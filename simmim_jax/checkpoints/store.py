"""Checkpoints of a run: written in the background, whole or not at all, by Orbax.

A checkpoint has four items: `params`, `optimizer` (step and moments), `data` (where the
input stream was) and `meta` (the config, the versions, the classes). `params` are those
to use: with config.ema_decay the moving averages, and then `optimizer` has the latest
parameters as well, to go on from.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from simmim_jax.errors import Interrupted, NotFoundError, UserError

# Orbax warns of what we mean to do: checkpoints without metrics, items read one by one.
logging.getLogger("absl").addFilter(
    lambda record: (
        not record.getMessage().startswith(
            (
                "Requested `tracked_metric`",
                "Metadata file does not exist",
                "Global object size logging disabled",
            )
        )
    )
)

ITEMS = ("params", "optimizer", "data", "meta")
# Stored with the metrics of a checkpoint: more is better.
_QUALITY = "quality"


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics[_QUALITY]


class Checkpointer:
    """Saves and restores the checkpoints of one run, in <workdir>/checkpoints.

    Keeps the last `keep` and the best by the metric `best` ("max" or "min" of it).
    """

    def __init__(self, workdir: str | Path, *, keep: int, best: str, mode: str) -> None:
        self._best, self._sign = best, {"max": 1, "min": -1}[mode]
        preserve = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    n=1, get_metric_fn=_quality, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preserve,
                best_fn=_quality,  # without it, Orbax does not store metrics
                cleanup_tmp_directories=True,
            ),
            item_names=ITEMS,
        )

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """The newest step that has a whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step whose metrics were best, None where none has metrics."""
        rated = {
            step: _quality(metrics)
            for step in self.steps()
            if (metrics := self._manager.metrics(step))
        }
        # Of equals the later one, which is the one that Orbax keeps.
        return max(rated, key=lambda step: (rated[step], step), default=None)

    def metrics(self, step: int) -> dict[str, float]:
        """What evaluation gave at `step`; empty where it did not run."""
        metrics = dict(self._manager.metrics(step) or {})
        metrics.pop(_QUALITY, None)
        return metrics

    def save(
        self,
        step: int,
        *,
        params: Any,
        optimizer: Any,
        data: dict[str, Any],
        meta: dict[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Starts to write a checkpoint; arrays may be changed once this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=metrics and {**metrics, _QUALITY: self._sign * metrics[self._best]},
            force=True,
        )

    def restore(
        self, step: int, *, params: Any, optimizer: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Reads params, optimizer and data position.

        params, optimizer: trees of shapes with the shardings to restore onto, which may
        differ from those at the time of writing.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                optimizer=ocp.args.StandardRestore(optimizer),
                data=ocp.args.JsonRestore(),
            ),
        )
        return restored.params, restored.optimizer, restored.data

    def is_writing(self) -> bool:
        """Whether a checkpoint is not yet whole on disk."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Waits for pending writes and stops the threads behind them.

        Not where one of several processes fails: it would wait for the others.
        """
        if kind in (None, Interrupted) or jax.process_count() == 1:
            self._manager.close()


def load(path: str | Path) -> tuple[dict, dict[str, Any]]:
    """Parameters (numpy, on the host) and meta of a run or of one checkpoint.

    path: as for `find`.
    """
    path = find(path)
    # Each process reads by itself; it may be the only one to do so.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}
    )
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        multiprocessing_options=alone,
    ) as reader:
        like = reader.metadata(path / "params").item_metadata
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like.tree
        )
        params = reader.restore(path / "params", restore_args=restore_args)
    with ocp.Checkpointer(
        ocp.JsonCheckpointHandler(), multiprocessing_options=alone
    ) as reader:
        return params, reader.restore(path / "meta")


def write(path: str | Path, params: Any, meta: dict[str, Any]) -> None:
    """Writes parameters and meta as one checkpoint, the folder `path`, for `load`.

    It has no optimiser: a run can start from it, and not go on with it. ValueError
    where there is a checkpoint already.
    """
    path = Path(path).expanduser().absolute()
    if (path / "params").exists() or (path / "checkpoints").exists():
        raise UserError(f"'{path}' holds a checkpoint already: choose another folder.")
    path.mkdir(parents=True, exist_ok=True)
    # `find` looks for params: they come last, when all the rest is there.
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        writer.save(path / "meta", meta)
    with ocp.StandardCheckpointer() as writer:
        writer.save(path / "params", params)


def find(path: str | Path) -> Path:
    """The folder of one checkpoint; of a workdir its best one, or else its last.

    FileNotFoundError where there is none.
    """
    path = Path(path).expanduser().absolute()
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints"
    steps = [
        p for p in folder.glob("*") if p.name.isdigit() and (p / "params").is_dir()
    ]
    if not steps:
        raise NotFoundError(
            f"no checkpoint in '{path}': expected the workdir of a run, with "
            "checkpoints/<step>/ in it, or one of those step folders."
        )

    def rank(step: Path) -> tuple[float, int]:
        file = step / "metrics" / "metrics"
        metrics = json.loads(file.read_text()) if file.exists() else {}
        return metrics.get(_QUALITY, -math.inf), int(step.name)

    return max(steps, key=rank)
