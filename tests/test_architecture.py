"""Who may import whom: what CONTRIBUTING.md promises, read off the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "simmim_jax"

# A room, which is a module or a sub-package, imports rooms of lower levels and itself.
LEVELS = (
    {
        "losses",
        "masking",
        "targets",
        "flops",
        "accelerators",
        "augment",
        "randaugment",
        "visualize",
        "interrupt",
        "profile",
        "hlo",
        "schedule",
        "distributed",
        "host_memory",
    },
    {
        "objective",
        "models",
        "optim",
        "sharding",
        "metrics",
        "checkpoint",
        "transfer",
        "data",
        "slices",
        "traffic",
        "kernels",
    },
    {"steps", "step_log", "inputs", "convert", "step_cost"},
    {"resume", "predict", "compilation"},
    {"train_loop"},
    {"pretrain", "finetune"},
    {"compare", "bench", "bench_input", "estimate"},
    {"main"},
    {"aot"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
FILES = {"io", "os", "pathlib", "shutil", "tempfile"}
TAKES_CONFIGS = {
    *(
        "inputs",
        "resume",
        "compilation",
        "train_loop",
        "pretrain",
        "finetune",
        "compare",
        "bench",
        "bench_input",
        "estimate",
        "main",
        "aot",
    ),
}


# What is run with flags.
COMMANDS = {"main", "aot"}


class Import(NamedTuple):
    """One imported module, or name of a module: "from a import b" is "a.b"."""

    line: int
    name: str
    lazy: bool  # within a function

    def is_of(self, *packages: str) -> bool:
        return any(self.name == p or self.name.startswith(f"{p}.") for p in packages)


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(node.lineno, f"{module}.{alias.name}", lazy)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, lazy or is_function)


def complaints(file: str, source: str) -> Iterator[str]:
    """What is wrong with a module of the package; file: as in "data/decode.py"."""
    room = file.split("/")[0].removesuffix(".py")
    tree = ast.parse(source)
    if room not in LEVEL:
        yield f"{file}: this room has no level: give it one in LEVELS"
        return
    for found in imports(tree):
        where = f"{file}:{found.line}: imports {found.name}"
        if found.name.startswith("."):
            yield f"{where}: write the whole name, simmim_jax.…"
        if found.is_of("tensorflow"):
            yield f"{where}: the package runs without TensorFlow, use NumPy"
        if found.is_of("configs", "tests", "benchmarks"):
            yield f"{where}: the package stands alone, take a parameter instead"
        if room == "data" and found.is_of(*JAX):
            yield f"{where}: data/ is NumPy on the host, no JAX in its workers"
        if found.is_of("ml_collections") and room not in TAKES_CONFIGS:
            unpack = ", ".join(sorted(TAKES_CONFIGS))
            yield f"{where}: take plain fields here, {unpack} unpack the config"
        if room == "steps" and found.is_of(*FILES):
            yield f"{where}: steps are pure, read and write in train_loop"
        if found.is_of("absl") and room not in COMMANDS:
            yield f"{where}: flags are main's, take an argument instead"
        if found.is_of("simmim_jax"):
            yield from level_complaints(room, where, found)


def level_complaints(room: str, where: str, found: Import) -> Iterator[str]:
    other = (*found.name.split("."), "")[1]
    if other == room:
        return
    if other not in LEVEL:
        yield f"{where}: name a module that has a level in LEVELS"
    elif LEVEL[other] >= LEVEL[room]:
        yield (
            f"{where}: {room} is of level {LEVEL[room]}, {other} of {LEVEL[other]}, "
            "and only lower levels may be imported: pass the thing in as an argument, "
            "or move what both need into a lower room"
        )
    elif room == "main" and not found.lazy and not found.is_of("simmim_jax.data"):
        yield f"{where}: main starts JAX first, import within main()"


def config_complaints(file: str, source: str) -> Iterator[str]:
    for found in imports(ast.parse(source)):
        if not found.is_of("ml_collections", "configs", "typing", "collections.abc"):
            yield (
                f"{file}:{found.line}: imports {found.name}: a config holds plain "
                "values and imports ml_collections, other configs and types alone"
            )


def sources(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*.py"))
    }


def test_modules_import_what_their_level_allows():
    found = [
        complaint
        for file, source in sources(PACKAGE).items()
        if file != "__init__.py"
        for complaint in complaints(file, source)
    ]
    assert not found, "\n".join(["", *found])


def test_the_package_itself_imports_nothing():
    assert not list(imports(ast.parse((PACKAGE / "__init__.py").read_text()))), (
        "simmim_jax/__init__.py is read before main starts JAX: keep it empty"
    )


def test_configs_import_nothing_of_the_package():
    found = [
        complaint
        for file, source in sources(ROOT / "configs").items()
        for complaint in config_complaints(file, source)
    ]
    assert not found, "\n".join(["", *found])


def test_benchmarks_import_nothing_of_the_tests():
    tests = {"tests", *(Path(file).stem for file in sources(ROOT / "tests"))}
    found = [
        f"{file}:{found.line}: imports {found.name}: tests may import benchmarks"
        for file, source in sources(ROOT / "benchmarks").items()
        for found in imports(ast.parse(source))
        if found.is_of(*tests)
    ]
    assert not found, "\n".join(["", *found])


def test_no_module_is_a_drawer():
    drawers = {"util", "utils", "helper", "helpers", "misc", "common"}
    found = [f for f in sources(PACKAGE) if drawers & set(Path(f).stem.split("_"))]
    assert not found, (
        f"{found}: name a module after what it is about, or move its functions to "
        "where they are used"
    )


def python(code: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_nothing_even_tries_to_import_tensorflow():
    wanted = python(
        """
import importlib, pkgutil, sys
wanted = []
class Record:
    def find_spec(name, path, target=None):
        wanted.append(name)
sys.meta_path.insert(0, Record)
import simmim_jax
for module in pkgutil.walk_packages(simmim_jax.__path__, "simmim_jax."):
    importlib.import_module(module.name)
print(*wanted)
"""
    )
    assert {"simmim_jax.main", "simmim_jax.data.pipeline", "jax"} <= set(wanted)
    assert "tensorflow" not in wanted, "import it where it is used, or do without it"


def test_main_does_not_import_jax():
    loaded = python("import sys, simmim_jax.main; print(*sys.modules)")
    assert "simmim_jax.main" in loaded
    assert "jax" not in loaded, (
        "main checks the command line in milliseconds and starts jax.distributed "
        "before anything uses JAX: import within main()"
    )


# ---- The checker itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("losses.py", "from simmim_jax import steps", "lower levels"),
        ("losses.py", "from simmim_jax.masking import upsample", "lower levels"),
        ("losses.py", "def f():\n    import simmim_jax.steps", "losses.py:2"),
        ("models/vit.py", "from simmim_jax.optim import adamw", "lower levels"),
        ("models/vit.py", "from ml_collections import ConfigDict", "plain fields"),
        ("models/vit.py", "from .layers import Linear", "whole name"),
        ("steps.py", "import simmim_jax", "name a module"),
        ("steps.py", "from pathlib import Path", "steps are pure"),
        ("steps.py", "from configs import common", "stands alone"),
        ("main.py", "from simmim_jax import pretrain", "within main"),
        ("metrics.py", "import tensorflow as tf", "without TensorFlow"),
        ("data/decode.py", "from jax import numpy", "no JAX"),
        ("predict.py", "from absl import flags", "flags are main's"),
        ("drawer.py", "import jax", "no level"),
    ],
)
def test_the_checker_complains(file, source, complaint):
    found = list(complaints(file, source))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("steps.py", "import jax\nfrom simmim_jax.models.vit import ViT"),
        ("models/vit.py", "from simmim_jax.models.layers import Linear"),
        ("data/sources.py", "def f():\n    import tensorflow_datasets"),
        ("main.py", "def main():\n    from simmim_jax.pretrain import pretrain"),
    ],
)
def test_the_checker_allows(file, source):
    assert not list(complaints(file, source))


def test_the_checker_reads_configs():
    assert not list(config_complaints("x.py", "from configs import common"))
    assert not list(config_complaints("x.py", "from collections.abc import Iterable"))
    assert list(config_complaints("x.py", "import simmim_jax"))
