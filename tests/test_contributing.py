"""The examples of CONTRIBUTING.md run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
MAX_LINES = 40


def example(kind: str) -> str:
    """The Python block below the heading "Add a <kind>"."""
    section = PAGE.split(f"## Add a {kind}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.mark.parametrize("kind", ["file format", "modality", "model"])
def test_example_is_short_and_trains(kind, tmp_path):
    code = example(kind)
    assert len(code.splitlines()) <= MAX_LINES
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "'eval_loss': " in done.stdout.splitlines()[-1]
