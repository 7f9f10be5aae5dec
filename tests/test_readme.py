"""The pages in the root tell the truth about the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "configs|benchmarks|docs|colab|scripts|simmim_jax|tests"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?![\w<*])")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
IMAGE = re.compile(r"<img[^>]*\ssrc=[\"'](?!https?://)([^\"']+)")


def module_file(module: str) -> str:
    """The file that `python -m` runs."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def paths(text: str) -> set[str]:
    """Files and folders that a page names or links to, modules that it runs."""
    modules = re.findall(r"-m (simmim_jax[\w.]*)", text)
    found = {module_file(module) for module in modules}
    for pattern in (PATH, LINK, IMAGE):
        found.update(pattern.findall(text))
    return found


def test_readme_has_the_test_command_of_ci():
    (command,) = re.findall(r'^TEST="(.+)"$', (ROOT / ".ci" / "run").read_text(), re.M)
    assert command in (ROOT / "README.md").read_text().splitlines(), (
        f"README.md and .ci/run must have the same line: {command}"
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_a_page_names_exists(page):
    missing = [p for p in paths((ROOT / page).read_text()) if not (ROOT / p).exists()]
    assert not missing, f"{page} names {sorted(missing)}: correct it, or add them"


def test_the_search_for_paths():
    text = """
[one](docs/one.md#part) [two](https://a.example/tests/two.py) ![three](docs/3.png)
`configs/four.py:smoke`, `configs/*.py`, `tests/test_<name>.py`, https://a.example/simmim_jax/tree
    python -m simmim_jax.main --config=configs/five.py --workdir=runs/five
    python -m simmim_jax.convert runs/five five.pth
<img alt="six" src="docs/six.png">, simmim_jax/data/.
"""
    assert paths(text) == {
        "docs/one.md",
        "docs/3.png",
        "configs/four.py",
        "simmim_jax/main.py",
        "simmim_jax/convert.py",
        "configs/five.py",
        "docs/six.png",
        "simmim_jax/data",
    }
