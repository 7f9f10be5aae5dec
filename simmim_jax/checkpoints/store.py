"""Checkpoints of a run, written asynchronously and atomically by Orbax.

A checkpoint has four items: `params`, `optimizer` (step and moments), `data` (position
of the input pipeline) and `meta` (config, versions, classes). `params` are the ones to
use. With config.ema_decay they are the moving averages, and `optimizer` also holds the
latest parameters, to resume from. `checksums.json` has the checksums of all files, and
`metrics` follows once the checkpoint is evaluated.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from simmim_jax.checkpoints import checksums, layout, orbax_messages
from simmim_jax.checkpoints.checksums import DamagedError
from simmim_jax.checkpoints.layout import QUALITY, TO_RESUME, find
from simmim_jax.errors import ExistsError, Interrupted
from simmim_jax.runtime import distributed

orbax_messages.leave_out_known_ones()
_log = logging.getLogger(__name__)

# Entry of a meta: whether an evaluation follows, which rates the checkpoint. A run that
# resumes with another batch size or interval could not tell.
TO_BE_RATED = "to_be_rated"

# What Orbax needs to know of each array.
_ARRAY_METADATA = ("param_name", "write_shape", "chunk_shape")

# Time until all processes must see what process 0 has renamed [seconds].
_SHARED_TIMEOUT = 90.0


class Checkpointer:
    """Saves and restores the checkpoints of one run, in <workdir>/checkpoints.

    Keeps the last `keep`, and the best by the metric `best` (`mode`: "max" or "min").
    Opening it moves damaged checkpoints newer than the last good one to
    <workdir>/damaged, with a warning, and raises DamagedError if no other is left.
    """

    def __init__(self, workdir: str | Path, *, keep: int, best: str, mode: str) -> None:
        self._best, self._sign = best, {"max": 1, "min": -1}[mode]
        workdir = Path(workdir).absolute()
        self._folder = workdir / "checkpoints"
        self._metrics = _open_good(workdir)
        self._unwritten: set[int] = set()  # rated steps whose metrics are not on disk
        self._finishing = threading.Lock()  # a signal's thread finishes, too
        self._saving = 0  # the step that is written at the moment, or was last
        self._policy = _LastAndBest(keep, self._best_of)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                lightweight_initialize=True,  # metrics are ours
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums
                ),
            ),
            item_names=TO_RESUME,
        )

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, sorted."""
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """Return the newest step, whose checkpoint is complete and sound, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Return the step with the best metrics, or None if none has metrics."""
        return self._best_of(self.steps())

    def is_rated(self, step: int) -> bool:
        """Return whether a checkpoint has the metrics of an evaluation."""
        return step in self._metrics

    def is_to_be_rated(self, step: int) -> bool:
        """Return whether an evaluation was due when a step was saved."""
        meta = self._folder / str(step) / "meta" / "metadata"
        return bool(step) and layout.read_json(meta).get(TO_BE_RATED, False)

    def metrics(self, step: int) -> dict[str, float]:
        """Return the evaluation metrics of `step`; empty without an evaluation."""
        metrics = dict(self._metrics.get(step, {}))
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
    ) -> None:
        """Start to write a checkpoint; arrays may be donated once this returns."""
        self.finish()
        self._saving = step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the evaluation of a saved step. All processes call it.

        The metrics follow the checkpoint to disk: at once if it is written, else before
        the next one is, or in `wait`.
        """
        quality = self._sign * metrics[self._best]
        self._metrics[step] = {**metrics, QUALITY: quality}
        self._unwritten.add(step)
        if not self.is_writing():
            self.finish()

    def restore(
        self, step: int, *, params: Any, optimizer: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return params, optimizer and data position.

        params, optimizer: trees of shapes with the shardings to restore onto, which may
        differ from the shardings at the time of saving.
        """
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            data=ocp.args.JsonRestore(),
        )
        with _doubting(self._folder / str(step)):
            restored = self._manager.restore(step, args=args)
        return restored.params, restored.optimizer, restored.data

    def examples_seen(self, step: int) -> int:
        """Return how many training examples the run had seen at `step`."""
        path = self._folder / str(step) / "data" / "metadata"
        return layout.read_json(path)["examples_seen"]

    def is_writing(self) -> bool:
        """Return whether a checkpoint is not complete on disk yet."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Block until everything is on disk, and nothing else. All processes call it.

        A checkpoint that is no longer the best stays until then.
        """
        self.finish()
        steps = self.steps()
        for step in sorted(set(steps) - self._policy.kept(steps)):
            self._manager.delete(step)

    def finish(self) -> None:
        """Block until the checkpoint and all metrics are on disk."""
        with self._finishing:
            try:
                self._manager.wait_until_finished()
            except Exception:
                self._unwritten.clear()  # their checkpoint is not there
                raise
            while self._unwritten:
                step = min(self._unwritten)
                if jax.process_index() == 0:
                    layout.write_metrics(self._folder / str(step), self._metrics[step])
                self._unwritten.remove(step)

    def _write_checksums(self) -> None:
        """Complete a checkpoint; Orbax calls it on process 0, before it commits."""
        (folder,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.write(folder)

    def _best_of(self, steps: Sequence[int]) -> int | None:
        rated = [step for step in steps if step in self._metrics]
        # Ties go to the later step.
        return max(rated, key=lambda s: (self._metrics[s][QUALITY], s), default=None)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Wait for pending writes, and stop their threads.

        If one of several processes fails it does not wait: the others would not come.
        """
        if kind in (None, Interrupted) or jax.process_count() == 1:
            self.finish()
            self._manager.close()


class _LastAndBest(policies.PreservationPolicy):
    """Keeps the last checkpoints and the best one.

    Orbax's own policy needs the metrics when a checkpoint is saved.
    """

    def __init__(
        self, keep: int, best_of: Callable[[Sequence[int]], int | None]
    ) -> None:
        self._keep, self._best_of = keep, best_of

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Return those of these steps, sorted, that are kept."""
        best = self._best_of(steps)
        return {*steps[-self._keep :], *([] if best is None else [best])}

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Return which checkpoints Orbax keeps."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self.kept(steps)
        return [step in kept for step in steps]


def size_of(state: Any) -> int:
    """Return what a checkpoint of a tree of arrays, or their shapes, takes [bytes]."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


# ---- Open ----------------------------------------------------------------------------


def _open_good(workdir: Path) -> dict[int, dict[str, float]]:
    """Set damaged checkpoints aside; return the metrics of those that have some.

    Process 0 decides, and reads the metrics: a file system may show the others what was
    there before. They wait until they see the newest checkpoint.
    """
    folder = workdir / "checkpoints"
    newest, metrics = -1, dict[str, dict[str, float]]()
    if jax.process_index() == 0:
        newest = _set_damaged_aside(workdir)
        metrics = {
            step.name: layout.read_metrics(step) for step in layout.steps(folder)
        }
    if jax.process_count() > 1:
        distributed.meet()
        newest, metrics = distributed.of_first_process((newest, metrics))
        end = time.monotonic() + _SHARED_TIMEOUT
        while _newest(folder) != newest and time.monotonic() < end:
            time.sleep(0.5)  # a mounted bucket caches what it lists
    return {int(step): rated for step, rated in metrics.items() if rated}


def _newest(folder: Path) -> int:
    return next((int(step.name) for step in layout.steps(folder)), -1)


def _set_damaged_aside(workdir: Path) -> int:
    """Move what is damaged to <workdir>/damaged; return the newest good step, or -1."""
    folder = workdir / "checkpoints"
    for step in layout.steps(folder):
        try:
            layout.read_metrics(step)
        except DamagedError as error:
            if step.is_dir():
                place = layout.set_aside(step / "metrics", workdir)
                _log.warning(
                    f"The metrics of checkpoint {step.name} are damaged: {error}. They "
                    f"were moved to '{place}'."
                )
    for step in layout.steps(folder):
        try:
            layout.check(step, TO_RESUME)
            if not checksums.exist(step):
                _try_reading(step)
        except DamagedError as error:
            place = layout.set_aside(step, workdir)
            _log.warning(f"{error} It was moved to '{place}'.")
        else:
            return int(step.name)
    if (workdir / "damaged").exists():
        raise DamagedError(
            f"'{workdir}' has no undamaged checkpoint to resume from: see its folder "
            "damaged/. Choose another --workdir to begin anew, or restore its folder "
            "checkpoints/ from a backup."
        )
    return -1


def _try_reading(step: Path) -> None:
    """Raise DamagedError if a checkpoint without checksums cannot be read at all."""
    item = "data"
    try:
        layout.read_json(step / item / "metadata")
        for item in ("params", "optimizer"):
            _read_arrays(step / item)
            # Read only where arrays are put onto devices.
            for file in (step / item / "array_metadatas").glob("*"):
                for entry in json.loads(file.read_text())["array_metadatas"]:
                    _ = [entry["array_metadata"][key] for key in _ARRAY_METADATA]
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        raise DamagedError(
            f"The checkpoint '{step}' is damaged: {item}/ cannot be read."
        ) from error


# ---- One checkpoint ------------------------------------------------------------------


def load(path: str | Path) -> tuple[dict, dict[str, Any]]:
    """Return parameters (NumPy, on the host) and meta of a workdir or checkpoint.

    path: as for `find`.
    """
    path = find(path)
    with _doubting(path):
        params = _read_arrays(path / "params")
    return params, layout.read_json(path / "meta" / "metadata")


def load_shapes(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return what `load` does, with the shape and dtype of each parameter alone."""
    path = find(path)
    with _doubting(path), _reader() as reader:
        shapes = reader.metadata(path / "params").item_metadata.tree
    return shapes, layout.read_json(path / "meta" / "metadata")


@contextlib.contextmanager
def _doubting(step: Path) -> Iterator[None]:
    """Blame the files of a checkpoint without checksums for an error while reading."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        if checksums.exist(step):
            raise
        first_line = str(error).partition("\n")[0][:200]
        raise DamagedError(
            f"The checkpoint '{step}' cannot be read; without checksums, damage is the "
            "most likely reason. Move it out of its folder to take the one before. "
            f"{type(error).__name__}: {first_line}"
        ) from error


def _read_arrays(item: Path) -> Any:
    """Return an item of arrays as NumPy, on the host."""
    with _reader() as reader:
        like = reader.metadata(item).item_metadata
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like.tree
        )
        return reader.restore(item, restore_args=restore_args)


def _reader() -> ocp.Checkpointer:
    """Return what reads items in one process: it may be the only one that loads."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        multiprocessing_options=alone,
    )


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
    checksums.write(path)
