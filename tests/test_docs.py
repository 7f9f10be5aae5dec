"""Commands of README, CONTRIBUTING and docs: valid, and run at smoke size.

tests/doc_commands.toml says how each command is run, or why it is not.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import simmim_jax
from simmim_jax.cli import arguments, commands, convert
from simmim_jax.config import schema
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
ENTRIES = tomllib.loads((ROOT / "tests" / "doc_commands.toml").read_text())
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.M | re.S)
SHELLS = ("bash", "sh")
# Modules whose `python -m` is a sub-command of `simmim`.
TWINS = {
    "simmim_jax.main": "train",
    "simmim_jax.predict": "predict",
    "simmim_jax.convert": "convert",
    "simmim_jax.aot": "aot",
    "simmim_jax.data.pack": "pack",
}
# "commands" that end in it match every command that begins so.
PREFIX = " ..."


# ---- Finding commands ----------------------------------------------------------------


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Yield (page, text) of every code block of these languages."""
    for page in PAGES:
        for _, language, text in BLOCK.findall(page.read_text()):
            if language in languages:
                yield page.relative_to(ROOT).as_posix(), textwrap.dedent(text)


def is_complete(text: str) -> bool:
    """Whether bash can parse it: no open quote, loop or continued line."""
    check = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    return check.returncode == 0 and not check.stderr


def split(text: str) -> list[str]:
    """Return the commands of a shell block, each on one line, without comments."""
    found, chunk = [], ""
    for line in text.splitlines():
        chunk += line + "\n"
        if line.endswith("\\") or not is_complete(chunk):
            continue
        command = re.sub(r"\\\n", " ", re.sub(r"(^|\s)#.*", "", chunk, flags=re.M))
        if command.strip():
            found.append(" ".join(command.split()))
        chunk = ""
    assert not chunk, f"bash cannot parse:\n{chunk}"
    return found


@functools.cache
def documented() -> dict[str, str]:
    """Commands of all pages, and the first page that has each."""
    found: dict[str, str] = {}
    for page, text in blocks(*SHELLS):
        for command in split(text):
            found.setdefault(command, page)
    return found


def calls(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `simmim` and `python -m` in a command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if re.fullmatch(r"[();<>|&]+", word):
            yield from _calls_of(words)
            words = []
        else:
            words.append(word)


def _calls_of(words: list[str]) -> Iterator[list[str]]:
    for word in words:
        if "simmim" in word and " " in word:  # a command in quotes
            yield from calls(word)
    # Before a program: variables, keywords of loops, programs that start others.
    is_before = re.compile(r"\w+=.*|do|nohup|srun").fullmatch
    while words and is_before(words[0]):
        words = words[1:]
    program, *rest = words or [""]
    program = program.rsplit("/", 1)[-1]
    if program == "simmim":
        yield rest
    elif program in ("python", "python3") and rest[:1] == ["-m"]:
        yield [TWINS.get(rest[1], rest[1]), *rest[2:]]


def lists_in(tree: Any) -> Iterator[list]:
    """Yield the lists in a tree of dicts and lists."""
    if isinstance(tree, list):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(child, dict | list):
            yield from lists_in(child)


def examples() -> dict[str, str]:
    """Return commands in indented lines of docstrings: of configs, and for --help."""
    found = {}
    for file in [*ROOT.glob("configs/*.py"), *ROOT.glob("simmim_jax/cli/*.py")]:
        doc = ast.get_docstring(ast.parse(file.read_text())) or ""
        for text in re.findall(r"^ {4}((?:simmim|python) (?:.*\\\n)*.*)$", doc, re.M):
            found[" ".join(text.replace("\\\n", " ").split())] = file.name
    return found


def inline() -> list[str]:
    """Return the commands in `code` of a page's text; those with "…" are left out."""
    texts = (BLOCK.sub("", page.read_text()) for page in PAGES)
    found = (re.findall(r"`((?:simmim|python -m) [^`…<]*)`", text) for text in texts)
    return [command for each in found for command in each]


def python_of(page: str) -> str:
    """Return the first Python block of a page."""
    return next(text for where, text in blocks("python") if where == page)


# ---- Checking without running --------------------------------------------------------


class Parsed(Exception):
    """Raised once a command has checked its arguments."""


@pytest.fixture
def check(monkeypatch, tmp_path):
    """A function that checks the arguments of `simmim`, or of a module."""

    def after(function):
        def stop(*args, **kwargs):
            result = function(*args, **kwargs)
            if isinstance(result, tuple):
                schema.parse(result[1])
            raise Parsed

        return stop

    def check_arguments(program: str, *argv: str) -> None:
        argv = tuple(re.sub(r"\$\w+", "0", word) for word in argv)
        if program in commands.COMMANDS:
            with contextlib.suppress(Parsed):
                commands.main([program, *argv])
        elif program.startswith(("benchmarks.", "tests.")):
            check_script(program, argv)
        else:
            assert program in ("--help", "venv", "build"), f"there is no {program}"

    monkeypatch.setattr(arguments, "parse", after(arguments.parse))
    monkeypatch.setattr(convert, "read", after(lambda *args: None))
    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", after(parse_args))
    monkeypatch.chdir(tmp_path)
    Path("my_photos.py").write_text(python_of("docs/how-to/models.md"))
    for name in ("names.txt", "imagenet_classes.txt"):
        Path(name).write_text("robin\nwren\n")
    return check_arguments


def check_script(module: str, argv: Sequence[str]) -> None:
    """Check that a benchmark or tool exists and has these flags."""
    path = ROOT / module.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = file.read_text()
    flags = [a.partition("=")[0] for a in argv if a.startswith("--")]
    missing = [flag for flag in flags if f'"{flag}"' not in source]
    assert not missing, f"{module} has no {missing}"


WHOLE = [command for command in inline() if "=" in command or command.count(" ") > 2]


@pytest.mark.parametrize("command", sorted({*documented(), *examples(), *WHOLE}))
def test_a_command_is_valid(command, check, capsys):
    for program, *argv in calls(command):
        check(program, *argv)


def test_commands_in_the_text_exist():
    named = {program for each in inline() for program, *_ in calls(each)}
    benchmarks = {f"benchmarks.{p.stem}" for p in ROOT.glob("benchmarks/*.py")}
    assert named <= {*commands.COMMANDS, "--help", "tests.fuzz", *benchmarks}


@pytest.mark.parametrize(
    "command",
    [
        "simmim trian --config=quickstart",
        "simmim train --config=quickstrat",
        "simmim train --config=vit_base --config.data.batchsize=8",
        "JAX_PLATFORMS=cpu nohup simmim train --config=vit_base --no_such_flag=1 &",
        "simmim train --config=vit_base --config.optim.lr=-1",
        "python -m simmim_jax.predict photo.jpg",
        "python -m benchmarks.augment --no_such_flag",
        "on_all 'cd x && simmim pack'",
    ],
)
def test_the_checker_complains(command, check, capsys):
    found = list(calls(command))
    assert found
    with pytest.raises((SystemExit, AssertionError, UserError)):
        check(*found[-1])


def test_containers_run_valid_commands(check):
    found = [
        call
        for _, text in blocks("yaml")
        for words in lists_in(yaml.safe_load(text))
        for call in calls(shlex.join(map(str, words)))
    ]
    assert found
    for program, *argv in found:
        check(program, *argv)


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(page.read_text() for page in PAGES)
    named = re.findall(r"(?:\.|simmim_jax)\[([\w,-]+)\]", text)
    assert named
    extras = {extra for names in named for extra in names.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_python_blocks_compile_and_import_what_exists():
    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text, page)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def api_page() -> str:
    """Return the Python blocks of the API page, which follow each other."""
    page = "docs/reference/api.md"
    return "\n".join(text for where, text in blocks("python") if where == page)


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs/reference/api.md").read_text()
    assert simmim_jax._API
    for name in simmim_jax._API:
        assert f"autofunction:: simmim_jax.{name}\n" in text
        assert f"sj.{name}(" in api_page()


@pytest.mark.slow
def test_the_examples_of_the_api_page_run(tmp_path):
    (tmp_path / "examples.py").write_text(
        textwrap.indent(api_page(), "    ").join(["if __name__ == '__main__':\n", ""])
    )
    run = subprocess.run(
        [sys.executable, "examples.py"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name in ("reconstructions.png", "features.png", "classifier.safetensors"):
        assert (tmp_path / name).exists()


# ---- The list of commands ------------------------------------------------------------


def matches(entry: str, command: str) -> bool:
    """Whether an entry of the list is this command, or a beginning of it."""
    if not entry.endswith(PREFIX):
        return entry == command
    return f"{command} ".startswith(entry.removesuffix(PREFIX))


def test_every_command_is_run_or_has_a_reason():
    listed = [c for kind in ENTRIES.values() for each in kind for c in each["commands"]]
    unlisted = [
        f"{page}: {command}"
        for command, page in documented().items()
        if not any(matches(entry, command) for entry in listed)
    ]
    assert not unlisted, "add to tests/doc_commands.toml:\n" + "\n".join(unlisted)
    stale = [
        entry
        for entry in listed
        if not any(matches(entry, command) for command in documented())
    ]
    assert not stale, "no page has:\n" + "\n".join(stale)


@pytest.mark.parametrize("entry", ENTRIES["run"], ids=lambda entry: entry["as"])
def test_a_run_has_the_flags_of_its_commands(entry, check, capsys):
    (mine,) = calls(entry["as"])
    if "runs/" not in entry["as"].replace("--workdir=runs/", ""):
        check(*mine)
    for command in entry["commands"]:
        (theirs,) = calls(command)
        assert theirs[0] == mine[0]
        assert flags_of(theirs) <= flags_of(mine)


def flags_of(argv: list[str]) -> set[str]:
    """Return the names of flags."""
    return {word.partition("=")[0] for word in argv if word.startswith("--")}


def test_skipped_commands_have_reasons():
    assert all(entry["reason"] and entry["commands"] for entry in ENTRIES["skip"])


# ---- Running them --------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run every lane; returns (status, output) by command."""
    folder = tmp_path_factory.mktemp("docs")
    fill(folder)
    env = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # steps are few, programs many
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    lanes: dict[str, list[str]] = {}
    for entry in ENTRIES["run"]:
        lanes.setdefault(entry["lane"], []).append(entry["as"])

    def run(commands: list[str]) -> dict[str, tuple[int, str]]:
        done = {}
        for command in commands:
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            done[command] = result.returncode, result.stdout
        return done

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {k: v for done in pool.map(run, lanes.values()) for k, v in done.items()}


def fill(folder: Path) -> None:
    """Write the images and files that commands take."""
    source = open_source("bundled:climate", "train")
    tags = ["path,steppe,cold"]
    for index in range(80):
        example = source[50 * index]
        image = Image.fromarray(example["image"])
        name = source.class_names[example["label"]]
        for path in (
            folder / "photos" / f"{index}.jpg",
            folder / "labelled" / name / f"{index}.jpg",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        truths = name == "steppe", name in ("continental", "polar")
        tags.append(f"photos/{index}.jpg," + ",".join(str(int(t)) for t in truths))
    (folder / "tags.csv").write_text("\n".join(tags) + "\n")
    image.save(folder / "photo.jpg")
    bands = np.random.default_rng(0).normal((0.1, 25), (0.05, 8), (40, 64, 64, 2))
    np.save(folder / "bands.npy", bands.astype(np.float32))
    classes = sorted(path.name for path in (folder / "labelled").iterdir())
    (folder / "names.txt").write_text("\n".join(classes) + "\n")
    (folder / "my_photos.py").write_text(python_of("docs/how-to/models.md"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [entry["as"] for entry in ENTRIES["run"]])
def test_a_command_runs(command, outcomes):
    status, output = outcomes[command]
    assert status == 0, output
