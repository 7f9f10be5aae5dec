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

# A room is a folder or module directly under simmim_jax/. It imports rooms of lower
# floors; floors may be skipped.
FLOORS = (
    {"errors"},
    {"config"},
    {"models", "augment", "monitoring", "runtime"},
    {"checkpoints", "mim", "data"},
    {"training"},
    {"tasks"},
    {"performance"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# On one floor nobody imports each other but for these.
NEIGHBOURS = {("monitoring", "runtime"), ("checkpoints", "data")}
# Likewise the rooms inside data.
DATA_FLOORS = (
    {"codecs"},
    {"sources", "views"},
    {"loader", "survey"},
    {"pack"},
)
DATA_FLOOR = {room: floor for floor, rooms in enumerate(DATA_FLOORS) for room in rooms}
MAX_ROOMS, MAX_ARROWS = 15, 45
# A module that only starts a command: not a room, and free to import cli.
TWIN_LINES = 10

JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
FILES = {"io", "os", "pathlib", "shutil", "tempfile"}
# Floors from tasks up read configs; below, rooms own plain dataclasses.
READS_CONFIGS = {"config", "tasks", "performance", "cli"}


class Import(NamedTuple):
    """One imported module, or name of a module: "from a import b" is "a.b"."""

    line: int
    name: str
    lazy: bool  # within a function

    def is_of(self, *packages: str) -> bool:
        return any(self.name == p or self.name.startswith(f"{p}.") for p in packages)

    @property
    def room(self) -> str | None:
        """The room of the package that is imported, or None."""
        first, _, rest = self.name.partition(".")
        return rest.split(".")[0] if first == "simmim_jax" else None


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


def is_door(file: str, source: str) -> bool:
    """Whether a module only leads into the package: __init__, __main__ or a twin."""
    if file.rsplit("/", 1)[-1] in ("__init__.py", "__main__.py"):
        return True
    lines = [line for line in source.splitlines() if line.strip()]
    return "/" not in file and len(lines) <= TWIN_LINES and "cli" in source


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def complaints(file: str, source: str) -> Iterator[str]:
    """What is wrong with a module of the package, such as "data/codecs/image.py"."""
    room = room_of(file)
    if room not in FLOOR:
        yield f"{file}: this room has no floor: give it one in FLOORS"
        return
    for found in imports(ast.parse(source)):
        where = f"{file}:{found.line}: imports {found.name}"
        if found.name.startswith("."):
            yield f"{where}: write the whole name, simmim_jax.…"
        if found.is_of("tensorflow"):
            yield f"{where}: the package runs without TensorFlow, use NumPy"
        if found.is_of("configs", "tests", "benchmarks", "simmim_jax.configs"):
            yield f"{where}: the package stands alone, take a parameter instead"
        if room in ("data", "config") and found.is_of(*JAX):
            yield f"{where}: {room}/ runs where JAX may not start, use NumPy"
        if found.is_of("ml_collections") and room not in READS_CONFIGS:
            readers = ", ".join(sorted(READS_CONFIGS))
            yield f"{where}: own a plain dataclass here; {readers} read configs"
        if room == "mim" and found.is_of(*FILES):
            yield f"{where}: what runs in a step is pure, read and write elsewhere"
        if found.is_of("absl.flags", "absl.app") and room != "cli":
            yield f"{where}: flags are cli's, take an argument instead"
        allowed = found.room in (None, "data", "errors") or found.is_of(
            "simmim_jax.runtime.host_memory"
        )
        if room == "data" and not allowed:
            yield f"{where}: data stands alone but for errors and runtime.host_memory"
        if found.room is not None:
            yield from floor_complaints(file, where, found)
    if "ArgumentParser(" in source and room != "cli":
        yield f"{file}: flags are cli's, take an argument instead"


def floor_complaints(file: str, where: str, found: Import) -> Iterator[str]:
    room, other = room_of(file), found.room
    if other == room == "data":
        yield from data_complaints(file, where, found)
    elif other == room or other == "errors":
        return
    elif other not in FLOOR:
        yield f"{where}: name a room that has a floor in FLOORS"
    elif FLOOR[other] >= FLOOR[room] and (room, other) not in NEIGHBOURS:
        yield (
            f"{where}: {room} is on floor {FLOOR[room]}, {other} on {FLOOR[other]}, "
            "and only lower floors may be imported: pass the thing in as an argument, "
            "or move what both need into a lower room"
        )
    elif (
        other == "config"
        and room not in READS_CONFIGS
        and not found.is_of("simmim_jax.config.durations")
    ):
        yield f"{where}: below tasks, of config the durations alone are known"


def data_complaints(file: str, where: str, found: Import) -> Iterator[str]:
    room, other = file.split("/")[1], found.name.split(".")[2]
    if room != other and DATA_FLOOR[other] >= DATA_FLOOR[room]:
        yield f"{where}: in data, {room} is below {other} or beside it"


def config_complaints(file: str, source: str) -> Iterator[str]:
    allowed = (
        "ml_collections",
        "simmim_jax.configs",
        "simmim_jax.config",
        "simmim_jax.errors",
        "typing",
        "collections.abc",
    )
    for found in imports(ast.parse(source)):
        if not found.is_of(*allowed):
            yield (
                f"{file}:{found.line}: imports {found.name}: a config holds plain "
                "values and imports ml_collections, other configs, simmim_jax.config, "
                "errors and types alone"
            )


def sources(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*.py"))
    }


def modules() -> dict[str, str]:
    """Modules that count: all but __init__, __main__ and twins of commands."""
    return {f: s for f, s in sources(PACKAGE).items() if not is_door(f, s)}


def test_modules_import_what_their_floor_allows():
    found = [
        complaint
        for file, source in modules().items()
        for complaint in complaints(file, source)
    ]
    assert not found, "\n".join(["", *found])


def test_the_house_stays_small(capsys):
    rooms, arrows = set(), set()
    for file, source in modules().items():
        room = room_of(file)
        rooms.add(room)
        for found in imports(ast.parse(source)):
            if found.room not in (None, room, "errors"):
                arrows.add((room, found.room))
    with capsys.disabled():
        print(f"\n{len(rooms)} rooms, {len(arrows)} arrows", end=" ")
    assert len(rooms) <= MAX_ROOMS, sorted(rooms)
    assert len(arrows) <= MAX_ARROWS, sorted(arrows)


def test_configs_import_nothing_but_configs():
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


def test_tests_mirror_the_package():
    folders = {p.parent for p in (ROOT / "tests").rglob("test_*.py")}
    strange = [
        folder
        for folder in folders - {ROOT / "tests"}
        if not (PACKAGE / folder.relative_to(ROOT / "tests")).is_dir()
    ]
    assert not strange, "tests stand in the folder of what they test"


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
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*wanted)
"""
    )
    assert {"simmim_jax.main", "simmim_jax.data.loader.pipeline", "jax"} <= set(wanted)
    assert "tensorflow" not in wanted, "import it where it is used, or do without it"


@pytest.mark.parametrize("module", ["data", "config"])
def test_rooms_that_do_without_jax(module):
    loaded = python(
        f"""
import importlib, pkgutil, sys
import simmim_jax.{module}
for module in pkgutil.walk_packages(
    simmim_jax.{module}.__path__, "simmim_jax.{module}."
):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sys.modules)
"""
    )
    assert f"simmim_jax.{module}" in loaded
    assert "jax" not in loaded, "worker processes would each pay for it"


@pytest.mark.parametrize(
    "module",
    ["simmim_jax", "simmim_jax.main", "simmim_jax.predict", "simmim_jax.configs"],
)
def test_what_does_not_import_jax(module):
    loaded = python(f"import sys, {module}; print(*sys.modules)")
    assert module in loaded
    assert "jax" not in loaded, (
        "the command line is checked in milliseconds, and jax.distributed starts "
        "before anything uses JAX: import within a function"
    )


def test_the_runtime_room_is_entered_without_a_word():
    assert (PACKAGE / "runtime" / "__init__.py").read_text() == ""


# ---- The checker itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("mim/losses.py", "from simmim_jax.training import steps", "lower floors"),
        ("mim/losses.py", "from simmim_jax.data import views", "lower floors"),
        (
            "mim/losses.py",
            "def f():\n    import simmim_jax.tasks.pretrain",
            "losses.py:2",
        ),
        (
            "models/vit.py",
            "from simmim_jax.training.optim import adamw",
            "lower floors",
        ),
        ("models/vit.py", "from ml_collections import ConfigDict", "plain dataclass"),
        ("models/vit.py", "from .layers import Linear", "whole name"),
        ("training/steps.py", "import simmim_jax", "name a room"),
        ("training/loop.py", "from simmim_jax.config import schema", "durations alone"),
        ("mim/masking.py", "from pathlib import Path", "pure"),
        ("training/steps.py", "from simmim_jax.configs import common", "stands alone"),
        ("monitoring/writer.py", "import tensorflow as tf", "without TensorFlow"),
        ("data/codecs/image.py", "from jax import numpy", "may not start"),
        ("tasks/predict.py", "p = argparse.ArgumentParser()", "flags are cli's"),
        ("drawer.py", "import jax", "no floor"),
        (
            "data/codecs/image.py",
            "from simmim_jax.data.views import crop",
            "codecs is below views",
        ),
    ],
)
def test_the_checker_complains(file, source, complaint):
    assert any(complaint in found for found in complaints(file, source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("training/steps.py", "import jax\nfrom simmim_jax.models.vit import ViT"),
        ("models/vit.py", "from simmim_jax.models.layers import Linear"),
        ("data/sources/tfds.py", "def f():\n    import tensorflow_datasets"),
        ("cli/train.py", "def main():\n    from simmim_jax.tasks import pretrain"),
        ("training/loop.py", "from simmim_jax.config.durations import in_steps"),
        ("data/views/crop.py", "from simmim_jax.errors import UserError"),
    ],
)
def test_the_checker_allows(file, source):
    assert not list(complaints(file, source))


def test_the_checker_reads_configs():
    allowed = "from simmim_jax.configs import common\nfrom typing import Any"
    assert not list(config_complaints("x.py", allowed))
    assert list(config_complaints("x.py", "import simmim_jax.tasks"))
