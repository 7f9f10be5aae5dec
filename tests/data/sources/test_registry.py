"""Data sets by their names: what each name opens, and what errors say."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from simmim_jax.data.sources.registry import check_source, open_source
from tests.images import write_image


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ("tdfs:mnist", ValueError, r"tdfs:mnist.*Did you mean 'tfds:mnist'"),
        ("bundle:climate", ValueError, "Did you mean 'bundled:climate'"),
        ("nosuch://bucket/x", ValueError, r"Protocol not known: nosuch.*gcsfuse"),
        ("gs://bucket/x.tar", ValueError, r"an archive at a URL.*gcsfuse"),
        ("s3:x", ValueError, r"expected a folder.*'tfds:NAME'"),
        ("fashion_mnist", FileNotFoundError, r"not exist.*'tfds:NAME'.*climate"),
        ("/does/not/exist", FileNotFoundError, "does not exist: expected"),
        ("", FileNotFoundError, "does not exist: expected"),
    ],
)
def test_mistyped_data_sets(dataset, error, message):
    for function in (check_source, open_source):
        with pytest.raises(error, match=message):
            function(dataset, "train")


def test_the_check_is_fast_because_it_loads_little(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a" / "1.png", "a/1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a" / "1.png", "a/1.png")
    (tmp_path / "a.csv").write_text("path\na/1.png\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    code = (
        "import sys\n"
        "from simmim_jax.data.sources import check_source\n"
        "check_source('bundled:climate', 'train')\n"
        "for name in ('a', 'a.tar', 'a.zip', 'a.csv', 'a.parquet'):\n"
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
        ("x.h5", r"unknown kind: expected a .tar, a .zip or a manifest \(.txt/.csv"),
        ("x.tar", r"is no tar file.*expected a whole .tar that is not compressed"),
        ("x.zip", r"is no zip file.*expected a whole"),
        ("x.parquet", "no Parquet file"),
        ("x.csv", r"columns no such: expected one of path, image, .*label or class"),
    ],
)
def test_files_that_are_not_what_they_should_be(name, message, tmp_path):
    (tmp_path / name).write_text("no such")
    for function in (check_source, open_source):
        with pytest.raises(ValueError, match=message):
            function(str(tmp_path / name), "train")
