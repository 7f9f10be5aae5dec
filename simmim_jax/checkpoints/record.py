"""Record of a run's origin: software versions, and differences between configs."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

PACKAGES = (
    "simmim_jax",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)


def describe_software() -> dict[str, Any]:
    """Return package versions, and the git commit if the code runs from a clone."""
    clone, commit = Path(__file__).parents[2], ""
    if shutil.which("git") and (clone / ".git").exists():
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    versions = {name: version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    return {"versions": versions, "git_commit": commit or None}


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields whose values differ: {"optim.lr": "was 0.1, is 0.2"}.

    A list equals a tuple because JSON has no tuples.
    """
    before, now = (
        flatten_dict(json.loads(json.dumps(config)), sep=".") for config in (old, new)
    )
    return {
        name: f"was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    }
