"""Data sets by name: formats, registration, and errors."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from simmim_jax.data.sources import registry
from simmim_jax.data.sources.base import as_source
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.registry import (
    FORMATS,
    check_source,
    open_all,
    open_source,
    register,
)
from simmim_jax.errors import NotFoundError, UserError
from tests.images import write_image


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ("tdfs:mnist", ValueError, r"tdfs:mnist.*Did you mean 'tfds:mnist'"),
        ("bundle:climate", ValueError, "Did you mean 'bundled:climate'"),
        ("nosuch://bucket/x", ValueError, r"URL of nosuch://: expected one of https"),
        ("memory::gs://x/y", ValueError, r"is a chain of URLs: expected one of"),
        ("gs://bucket/x.tar", ValueError, r"an archive at a URL.*gcsfuse"),
        ("s3:x", ValueError, r"expected a path that exists.*'tfds:NAME'"),
        ("fashion_mnist", FileNotFoundError, r"not exist.*climate.*'tfds:NAME'"),
        ("/does/not/exist", FileNotFoundError, "does not exist: expected"),
        ("", FileNotFoundError, "does not exist: expected"),
    ],
)
def test_unknown_data_sets(dataset, error, message):
    for function in (check_source, open_source):
        with pytest.raises(error, match=message):
            function(dataset, "train")


def test_checks_import_nothing_heavy(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a" / "1.png", "a/1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a" / "1.png", "a/1.png")
    (tmp_path / "a.csv").write_text("path\na/1.png\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    np.save(tmp_path / "a.npy", np.zeros((2, 1, 1, 1), np.uint8))
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "1.npy", np.zeros((1, 1), np.uint8))
    code = (
        "import sys\n"
        "from simmim_jax.data.sources.registry import check_source\n"
        "check_source('bundled:climate', 'train')\n"
        "for name in 'a a.tar a.zip a.csv a.parquet a.npy arrays'.split():\n"
        f"    check_source({str(tmp_path)!r} + '/' + name, 'train')\n"
        "try: check_source('tfds:mnist', 'train', data_dir='/nowhere')\n"
        "except FileNotFoundError: pass\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'PIL'}\n"
        "heavy |= {'pyarrow', 'fsspec'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "photos" / "train" / "1.png")
    (tmp_path / "list.txt").write_text("photos/train/1.png 0\nphotos/train/1.png 1\n")
    for function in (check_source, open_source):
        function("~/photos", "train")
        function("~/list.txt", "validation")
        with pytest.raises(FileNotFoundError, match=r"dataset='~/none' does not exist"):
            function("~/none", "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.tar.gz", r"x.tar.gz' is compressed.*gunzip .*x.tar.gz .*name the .tar"),
        ("x.tgz", "is compressed"),
        ("x.xyz", r"unknown file format: .*a .tar or .zip.*a manifest \(.txt/.csv"),
        ("x.tar", r"is not a tar file.*expected a complete, uncompressed .tar"),
        ("x.zip", "is not a zip file.*expected a complete"),
        ("x.parquet", "is not a Parquet file"),
        ("x.csv", r"columns no such: expected one of path, image, .*label or class"),
    ],
)
def test_files_of_another_format_than_their_ending(name, message, tmp_path):
    (tmp_path / name).write_text("no such")
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=message):
            function(str(tmp_path / name), "train")


# ---- Registration --------------------------------------------------------------------


@pytest.fixture
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])


def open_levels(place, split):
    """One image per line of a text file."""
    with open(place) as file:
        lines = file.read().split()
    if split != "train":
        raise UserError(f"split={split!r} does not exist: expected train.")
    return as_source([np.full((2, 2, 1), int(line), np.uint8) for line in lines])


LEVELS = Format(
    name="a .levels file",
    matches=lambda place: place.endswith(".levels"),
    check=open_levels,
    open=open_levels,
)


@pytest.mark.usefixtures("_own_registry")
def test_a_registered_format_is_opened(tmp_path):
    file = tmp_path / "set.levels"
    file.write_text("7 9")
    with pytest.raises(UserError, match="unknown file format"):
        open_source(str(file), "train")
    assert register(LEVELS) is LEVELS
    check_source(str(file), "train")
    assert open_source(str(file), "train")[1]["image"].tolist() == [[[9], [9]]] * 2
    with pytest.raises(UserError, match="expected train"):
        check_source(str(file), "val")
    (tmp_path / "set.depths").touch()
    with pytest.raises(UserError, match=r"expected .* or a \.levels file"):
        open_source(str(tmp_path / "set.depths"), "train")


@pytest.mark.usefixtures("_own_registry")
def test_registered_formats_come_first_and_replace_their_namesakes(tmp_path):
    write_image(tmp_path / "1.png")
    for value in (1, 2):
        register(
            Format(
                "a pair",
                os.path.isdir,
                lambda place, split: None,
                lambda place, split, value=value: as_source(
                    np.full((2, 1, 1, 1), value, np.uint8)
                ),
            )
        )
    assert open_source(str(tmp_path), "train")[0]["image"].item() == 2
    assert [format.name for format in registry._registered] == ["a pair"]


@pytest.mark.usefixtures("_own_registry")
def test_a_registered_prefix_is_suggested():
    register(
        Format(
            "'zenodo:RECORD'",
            lambda place: place.startswith("zenodo:"),
            lambda place, split: None,
            lambda place, split: as_source(np.zeros((1, 1, 1, 1), np.uint8)),
            prefix="zenodo",
        )
    )
    assert len(open_source("zenodo:17", "train")) == 1
    with pytest.raises(UserError, match="Did you mean 'zenodo:17'"):
        open_source("zenode:17", "train")


def test_every_format_has_its_own_name():
    names = [format.name for format in FORMATS]
    assert len(set(names)) == len(names)


def test_all_images_of_a_set_without_splits_keep_their_order(tmp_path):
    for i in range(30):
        write_image(tmp_path / f"{i:02}.png")
    (everything,) = open_all(str(tmp_path)).items()
    assert everything[0] == "all"
    assert [Path(p).name for p in everything[1].paths] == [
        f"{i:02}.png" for i in range(30)
    ]
    divided = open_all(str(tmp_path), ["train", "validation"])
    assert sum(map(len, divided.values())) == 30


def test_the_splits_of_a_set_are_found(tmp_path):
    assert list(open_all("bundled:climate")) == ["train", "validation"]
    for part in ("train", "test"):
        write_image(tmp_path / part / "a.png")
    assert list(open_all(str(tmp_path))) == ["train", "test"]
    bundled = Path(registry.__file__).parents[1] / "bundled"
    for file in bundled.glob("t10k-*"):
        (tmp_path / "idx").mkdir(exist_ok=True)
        (tmp_path / "idx" / file.name).write_bytes(file.read_bytes())
    assert list(open_all(str(tmp_path / "idx"))) == ["validation"]
    with pytest.raises(NotFoundError, match="dataset='nowhere' does not exist"):
        open_all("nowhere")
