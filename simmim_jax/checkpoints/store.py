"""Checkpoints of a run, written asynchronously and atomically by Orbax.

A checkpoint has four items: `params`, `optimizer` (step and moments), `data` (position
of the input pipeline) and `meta` (config, versions, classes). `params` are the ones to
use. With config.ema_decay they are the moving averages, and `optimizer` also holds the
latest parameters, to resume from.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from simmim_jax.checkpoints.layout import QUALITY, find
from simmim_jax.errors import ExistsError, Interrupted

# Orbax warns about intended use: checkpoints without metrics, items read one by one.
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


class Checkpointer:
    """Saves and restores the checkpoints of one run, in <workdir>/checkpoints.

    Keeps the last `keep`, and the best by the metric `best` (`mode`: "max" or "min").
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
        """Return the steps that have a complete checkpoint, sorted."""
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """Return the newest step that has a complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Return the step with the best metrics, or None if none has metrics."""
        rated = {
            step: _quality(metrics)
            for step in self.steps()
            if (metrics := self._manager.metrics(step))
        }
        # Ties go to the later step, the one that Orbax keeps.
        return max(rated, key=lambda step: (rated[step], step), default=None)

    def metrics(self, step: int) -> dict[str, float]:
        """Return the evaluation metrics of `step`; empty without an evaluation."""
        metrics = dict(self._manager.metrics(step) or {})
        metrics.pop(QUALITY, None)
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
        """Start to write a checkpoint; arrays may be donated once this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=metrics and {**metrics, QUALITY: self._sign * metrics[self._best]},
            force=True,
        )

    def restore(
        self, step: int, *, params: Any, optimizer: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return params, optimizer and data position.

        params, optimizer: trees of shapes with the shardings to restore onto, which may
        differ from the shardings at the time of saving.
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
        """Return whether a checkpoint is not complete on disk yet."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Wait for pending writes, and stop their threads.

        If one of several processes fails it does not wait: the others would not come.
        """
        if kind in (None, Interrupted) or jax.process_count() == 1:
            self._manager.close()


def load(path: str | Path) -> tuple[dict, dict[str, Any]]:
    """Return parameters (NumPy, on the host) and meta of a workdir or checkpoint.

    path: as for `find`.
    """
    path = find(path)
    # Each process reads independently: it may be the only one that loads.
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
    """Write parameters and meta as one checkpoint, the folder `path`, for `load`.

    Without an optimizer, it can initialise a run but not resume one. Raises ExistsError
    if `path` holds a checkpoint already.
    """
    path = Path(path).expanduser().absolute()
    if (path / "params").exists() or (path / "checkpoints").exists():
        raise ExistsError(
            f"'{path}' holds a checkpoint already. Choose another folder."
        )
    path.mkdir(parents=True, exist_ok=True)
    # `find` looks for params, so they are written last.
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        writer.save(path / "meta", meta)
    with ocp.StandardCheckpointer() as writer:
        writer.save(path / "params", params)


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics[QUALITY]
