"""The largest images that are decoded, one in a process of its own."""

import json
import subprocess
import sys

import pytest

from benchmarks.largest_images import KINDS, largest
from tests.packing import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_image_takes_less_than_a_gigabyte(kind, tmp_path):
    file = tmp_path / "image"
    file.write_bytes(largest(kind, noise=False))
    command = [sys.executable, "-m", "benchmarks.largest_images", f"--file={file}"]
    run = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    found = json.loads(run.stdout)
    assert found["pixels"] > 1_000_000
    assert found["peak"] < 1e9
