"""The notebooks run from top to bottom, on the smoke settings."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

COLAB = Path(__file__).parents[1] / "colab"
QUICK_START, OWN_IMAGES = "simmim_quickstart.ipynb", "own_images.ipynb"
TEXT, SPEECH = "text.ipynb", "speech.ipynb"
NOTEBOOKS = pytest.mark.parametrize("name", [QUICK_START, OWN_IMAGES, TEXT, SPEECH])


def execute(name, folder):
    """Run a notebook in a folder; returns its cells by their ids."""
    notebook = nbformat.read(COLAB / name, as_version=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SIMMIM_SMOKE", "1")
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    return {cell.id: cell for cell in notebook.cells}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    return folder, execute(QUICK_START, folder)


@pytest.fixture
def install(monkeypatch):
    """Run the first cell where the package is missing; returns what pip would get."""

    def run(name: str, folder: Path, status: int = 0) -> str:
        calls = []

        def pip(command):
            calls.append(command)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.chdir(folder)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", pip)
        (cell,) = (
            cell
            for cell in nbformat.read(COLAB / name, as_version=4).cells
            if cell.id == "install"
        )
        exec(cell.source, {})
        ((*_, package),) = calls
        return package

    return run


def text_of(cell) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def has_picture(cell) -> bool:
    """Whether the value of a cell is a picture."""
    (result,) = (o for o in cell.outputs if o.output_type == "execute_result")
    return "image/png" in result.data


@pytest.mark.parametrize("cell", ["reconstructions", "curves", "predict"])
def test_pictures_are_shown(executed, cell):
    _, cells = executed
    assert has_picture(cells[cell])


def test_nothing_is_installed_where_the_package_is(executed):
    folder, cells = executed
    assert not cells["install"].outputs
    assert [path.name for path in folder.iterdir()] == ["runs"]


@NOTEBOOKS
def test_it_installs_the_clone_that_it_is_in(name, install, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install(name, COLAB).startswith(str(COLAB.parent))


@NOTEBOOKS
def test_it_installs_the_clone_beside_it(name, install, monkeypatch, tmp_path):
    """As in Colab, where the repository was unzipped into the working folder."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "data").mkdir()
    (tmp_path / "unzipped" / "simmim_jax").mkdir(parents=True)
    (tmp_path / "unzipped" / "pyproject.toml").touch()
    assert install(name, tmp_path).startswith(str(tmp_path / "unzipped"))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        (QUICK_START, "simmim_jax[gpu]"),
        (OWN_IMAGES, "simmim_jax[export,gpu]"),
        (TEXT, "simmim_jax[gpu]"),
        (SPEECH, "simmim_jax[audio,gpu]"),
    ],
)
def test_elsewhere_it_installs_from_pypi(name, package, install, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert install(name, tmp_path) == package


@NOTEBOOKS
def test_it_says_what_to_do_where_pip_fails(name, install, tmp_path):
    with pytest.raises(RuntimeError, match="clone the repository"):
        install(name, tmp_path, status=1)


def test_fine_tuning_starts_from_the_pre_trained_encoder(executed):
    _, cells = executed
    assert "restored" in text_of(cells["finetune"])
    assert "top-1 on held-out images" in text_of(cells["finetune"])


def test_own_images_go_all_the_way(tmp_path):
    pytest.importorskip("flatbuffers")
    cells = execute(OWN_IMAGES, tmp_path)
    for cell in ("reconstruct", "embed", "features", "attention"):
        assert has_picture(cells[cell])
    assert text_of(cells["images"]) == "116 images\n"
    assert "vit, " in text_of(cells["pretrain"])
    assert text_of(cells["embed"]) == "116 vectors of 128\n"
    assert "restored" in text_of(cells["finetune"])
    assert text_of(cells["predict"]).count("images/") == 6
    said = text_of(cells["export"])
    assert "StableHLO for cpu, cuda, tpu, uint8 [b, 64, 64, 3] -> probabilities" in said
    assert float(said.split()[-1]) < 1e-5


def test_lines_of_text_go_all_the_way(tmp_path):
    cells = execute(TEXT, tmp_path)
    assert "Afrikaans: Elkeen het die reg tot lewe" in text_of(cells["lines"])
    assert has_picture(cells["reconstruct"])
    assert "top-1 on held-out lines: " in text_of(cells["finetune"])
    assert text_of(cells["predict"]).count("%") == 3


def test_speech_goes_all_the_way(tmp_path):
    cells = execute(SPEECH, tmp_path)
    assert "21 held-out recordings" in text_of(cells["sounds"])
    assert any("text/html" in o.get("data", ()) for o in cells["sounds"].outputs)
    assert has_picture(cells["pretrain"])
    assert "restored" in text_of(cells["transcribe"])
    assert "character error rate on held-out" in text_of(cells["transcribe"])
    assert text_of(cells["predict"]).count("heard: ") == 2
    assert has_picture(cells["predict"])


@NOTEBOOKS
def test_no_outputs_are_committed(name):
    cells = nbformat.read(COLAB / name, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "clear the outputs before committing: Edit > Clear All Outputs"
    )
