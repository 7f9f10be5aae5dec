"""Folders of checkpoints, and what they record about themselves, without JAX."""

import functools
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_jax.checkpoints import checksums
from simmim_jax.checkpoints.checksums import DamagedError
from simmim_jax.errors import NotFoundError

# Stored with the metrics of a checkpoint; higher is better.
QUALITY = "quality"
# Suffixes of files with the weights of other libraries.
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
# What is needed to use a checkpoint, and to resume from it.
TO_USE = ("params", "meta")
TO_RESUME = ("params", "optimizer", "data", "meta")

_log = logging.getLogger(__name__)


def steps(folder: Path) -> list[Path]:
    """Return the step folders of <workdir>/checkpoints, newest first."""
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def find(path: str | Path) -> Path:
    """Return the folder of one checkpoint: of a workdir the best one, or the last.

    Damaged ones are skipped with a warning. Raises NotFoundError if there is none, and
    DamagedError if `path` is a damaged one, or has no other.
    """
    path = Path(path).expanduser().absolute()
    if (path / "params").is_dir():
        check(path, TO_USE)
        return path
    damaged = ""
    for step in sorted(steps(path / "checkpoints"), key=_rank, reverse=True):
        try:
            check(step, TO_USE)
        except DamagedError as error:
            damaged = str(error)
            _log.warning(damaged)
        else:
            return step
    if damaged:
        raise DamagedError(f"'{path}' has no undamaged checkpoint. {damaged}")
    raise NotFoundError(
        f"'{path}' has no checkpoint in it. Expected the workdir of a run, with "
        f"checkpoints/<step>/, or one of those step folders."
        f"{_runs_in(path)}{_conversion(path)}"
    )


def _runs_in(path: Path) -> str:
    """Return which workdirs a folder has, such as that of a comparison, or ""."""
    runs = sorted(str(inner.parent) for inner in path.glob("*/checkpoints"))
    return f" It has those of other runs: {', '.join(runs[:3])}." if runs else ""


def _conversion(path: Path) -> str:
    """Return the command that converts a file or folder of weights, or ""."""
    if path.suffix not in WEIGHTS and not any(
        file.suffix in WEIGHTS for file in path.glob("*")
    ):
        return ""
    return (
        f" Convert the weights of another library first: `simmim convert {path} "
        "runs/converted`, and then take that folder."
    )


def check(step: Path, items: tuple[str, ...]) -> None:
    """Raise DamagedError if these items of a checkpoint are not what was written.

    Those of older releases have no checksums: the items must exist, and the meta must
    have a config, with a warning.
    """
    try:
        for item in items:
            if not (step / item).is_dir():
                raise DamagedError(f"{item}/ is missing")
        if checksums.exist(step):
            checksums.verify(step, items)
        else:
            _warn_unverified(step)
            _read_config(step / "meta" / "metadata")
    except DamagedError as error:
        raise DamagedError(f"The checkpoint '{step}' is damaged: {error}.") from error


@functools.cache
def _warn_unverified(step: Path) -> None:
    _log.warning(
        "The checkpoint '%s' has no %s, as those of older releases: it cannot be "
        "checked for damage.",
        *(step, checksums.FILE),
    )


def set_aside(path: Path, workdir: Path) -> Path:
    """Move a damaged part of a workdir's checkpoints to <workdir>/damaged; return it.

    What was set aside before under the same name stays.
    """
    place = workdir / "damaged" / path.relative_to(workdir / "checkpoints")
    place.parent.mkdir(parents=True, exist_ok=True)
    name, number = place.name, 1
    while place.exists():
        number += 1
        place = place.with_name(f"{name}-{number}")
    return path.rename(place)


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the meta of a workdir or checkpoint: config, versions, classes.

    path: as for `find`.
    """
    return read_json(find(path) / "meta" / "metadata")


def read_record(workdir: Path) -> dict[str, Any]:
    """Return <workdir>/config.json: what a run recorded when it last started.

    Raises DamagedError if it cannot be read or has no config.
    """
    file = workdir / "config.json"
    try:
        return _read_config(file)
    except DamagedError as error:
        raise DamagedError(
            f"'{file}' is damaged: {error}. Expected what the run recorded: copy it "
            "from meta/metadata of the newest checkpoint."
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file that has a run's config."""
    record = read_json(file)
    config = record.get("config")
    if not isinstance(config, dict) or not all(
        isinstance(config.get(part), dict) for part in ("model", "data")
    ):
        raise DamagedError(f"{file.parent.name}/{file.name} has no whole config")
    return record


# ---- Metrics -------------------------------------------------------------------------


def read_metrics(step: Path) -> dict[str, float]:
    """Return the metrics of a checkpoint with its QUALITY; empty without evaluation.

    Raises DamagedError if they are not what was written.
    """
    folder = step / "metrics"
    if not folder.exists():
        return {}
    if checksums.exist(folder):
        checksums.verify(folder)
    metrics = read_json(folder / "metrics")
    if not isinstance(metrics.get(QUALITY), int | float):
        raise DamagedError(f"metrics/metrics has no {QUALITY}")
    return metrics


def write_metrics(step: Path, metrics: Mapping[str, float]) -> None:
    """Add metrics to a complete checkpoint, where Orbax keeps them, atomically."""
    partial = step / "metrics.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "metrics").write_text(json.dumps(metrics))
    checksums.write(partial)
    # They are there if a signal came between renaming and what follows it.
    shutil.rmtree(step / "metrics", ignore_errors=True)
    partial.rename(step / "metrics")


def _rank(step: Path) -> tuple[float, int]:
    try:
        quality = read_metrics(step).get(QUALITY, -math.inf)
    except DamagedError as error:
        _log.warning("The metrics of '%s' are ignored: %s.", step, error)
        quality = -math.inf
    return quality, int(step.name)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint; raises DamagedError."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file.parent.name}/{file.name} cannot be read") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{file.parent.name}/{file.name} is not a JSON object")
    return content
