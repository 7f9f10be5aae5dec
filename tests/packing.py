"""Run `simmim pack` in tests."""

import sys
from pathlib import Path

import pytest

from simmim_jax.cli.pack import main

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "simmim_jax.data.pack"]


def fails(*args):
    """Run the command in this process, and return the error that ends it."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    return str(exit_info.value)
