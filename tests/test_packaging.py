"""The package as it is installed: what pyproject.toml lists is what there is."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    folders = {
        "simmim_jax" / p.parent.relative_to(ROOT / "simmim_jax")
        for p in (ROOT / "simmim_jax").rglob("__init__.py")
    }
    packages = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {
        "simmim_jax.configs"
    }


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("quickstart", "quickstart.py"),
        ("quickstart:smoke", "quickstart.py:smoke"),
        ("configs/vit_base.py", "vit_base.py"),
        ("vit_base.py:smoke", "vit_base.py:smoke"),
        ("configs/mine.py", "configs/mine.py"),
    ],
)
def test_configs_are_found_from_a_folder_with_configs_of_its_own(
    config, says, tmp_path
):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    found = in_folder(
        tmp_path,
        f"arguments.find_config({config!r})",
        "from simmim_jax.cli import arguments",
    )
    assert found.endswith(says)
    assert found.startswith("configs/") == (config == "configs/mine.py")


def test_a_config_of_a_user_imports_the_shared_ones(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from simmim_jax.configs import common\n"
        "def get_config():\n"
        "    return common.pretrain('vit_small')\n"
    )
    width = in_folder(
        tmp_path,
        "arguments.load('mine.py', [])[1].model.embed_dim",
        "from simmim_jax.cli import arguments",
    )
    assert width == "384"


def test_an_unknown_config_has_near_matches(tmp_path):
    code = (
        "from simmim_jax.cli.commands import main; main(['train', '--config=vit_bse'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'Did you mean "vit_base"' in done.stderr


def in_folder(folder, expression, imports):
    """What an expression is worth in a process that works in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; print({expression})"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_names_of_the_api_and_of_modules_are_disjoint():
    import simmim_jax

    modules = {p.stem for p in (ROOT / "simmim_jax").iterdir()}
    assert not set(simmim_jax._API) & modules
    for name in simmim_jax._API:
        assert callable(getattr(simmim_jax, name))
        assert name in dir(simmim_jax)
    with pytest.raises(AttributeError, match="no attribute 'predict_'"):
        simmim_jax.predict_  # noqa: B018


def test_every_command_shows_an_example():
    from simmim_jax.cli.commands import COMMANDS

    for name in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "simmim_jax", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"    simmim {name}" in done.stdout
