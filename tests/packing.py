"""The command that packs, for tests."""

import sys
from pathlib import Path

import pytest

from simmim_jax.cli.pack import main

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "simmim_jax.data.pack"]


def fails(*args):
    """Run the command in this process; returns the error that it ends with."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    return str(exit_info.value)
