"""The notebook runs from top to bottom, on the smoke settings."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "colab" / "simmim_quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SIMMIM_SMOKE", "1")
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    return folder, {cell.id: cell for cell in notebook.cells}


@pytest.fixture
def install(monkeypatch):
    """Run the first cell where the package is missing; returns what pip would get."""

    def run(folder: Path, status: int = 0) -> str:
        calls = []

        def pip(command):
            calls.append(command)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.chdir(folder)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", pip)
        (cell,) = (
            cell
            for cell in nbformat.read(NOTEBOOK, as_version=4).cells
            if cell.id == "install"
        )
        exec(cell.source, {})
        ((*_, package),) = calls
        return package

    return run


def text_of(cell) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


@pytest.mark.parametrize("cell", ["reconstructions", "curves", "predict"])
def test_pictures_are_shown(executed, cell):
    _, cells = executed
    (result,) = (o for o in cells[cell].outputs if o.output_type == "execute_result")
    assert "image/png" in result.data


def test_nothing_is_installed_where_the_package_is(executed):
    folder, cells = executed
    assert not cells["install"].outputs
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_it_installs_the_clone_that_it_is_in(install, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install(NOTEBOOK.parent).startswith(str(NOTEBOOK.parents[1]))


def test_it_installs_the_clone_beside_it(install, monkeypatch, tmp_path):
    """As in Colab, where the repository was unzipped into the working folder."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "data").mkdir()
    (tmp_path / "unzipped" / "simmim_jax").mkdir(parents=True)
    (tmp_path / "unzipped" / "pyproject.toml").touch()
    assert install(tmp_path).startswith(str(tmp_path / "unzipped"))


def test_elsewhere_it_installs_from_pypi(install, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert install(tmp_path) == "simmim_jax[gpu]"


def test_it_says_what_to_do_where_pip_fails(install, tmp_path):
    with pytest.raises(RuntimeError, match="clone the repository"):
        install(tmp_path, status=1)


def test_fine_tuning_starts_from_the_pre_trained_encoder(executed):
    _, cells = executed
    assert "restored" in text_of(cells["finetune"])
    assert "top-1 on held-out images" in text_of(cells["finetune"])


def test_no_outputs_are_committed():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "clear the outputs before committing: Edit > Clear All Outputs"
    )
