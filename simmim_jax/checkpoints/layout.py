"""Folders of checkpoints, and what they record about themselves, without JAX."""

import json
import math
from pathlib import Path
from typing import Any

from simmim_jax.errors import NotFoundError

# Stored with the metrics of a checkpoint; higher is better.
QUALITY = "quality"


def find(path: str | Path) -> Path:
    """Return the folder of one checkpoint: of a workdir the best one, or the last.

    Raises NotFoundError if there is none.
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
            f"'{path}' has no checkpoint in it. Expected the workdir of a run, with "
            "checkpoints/<step>/, or one of those step folders."
        )

    def rank(step: Path) -> tuple[float, int]:
        file = step / "metrics" / "metrics"
        metrics = json.loads(file.read_text()) if file.exists() else {}
        return metrics.get(QUALITY, -math.inf), int(step.name)

    return max(steps, key=rank)


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the meta of a workdir or checkpoint: config, versions, classes.

    path: as for `find`.
    """
    return json.loads((find(path) / "meta" / "metadata").read_text())
