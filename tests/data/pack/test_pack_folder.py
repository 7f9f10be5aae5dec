"""Folders that nothing is packed into."""

import fcntl
import re

import pytest

from simmim_jax.data.pack.folder import begin
from simmim_jax.data.sources import packed
from simmim_jax.errors import UserError
from tests.images import write_photographs
from tests.packing import fails


def test_a_set_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / packed.UNFINISHED).mkdir()
    with pytest.raises(OSError, match=r"needs about 1000000000\.0 GB.*make room"):
        begin(str(tmp_path), {}, 1e18)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"plan.json' is damaged .*Remove .*, and pack again"),
        (b"\xff", r"plan.json' is damaged"),
        (b"[1]", "packed from other data or with other options: a: None before, 1 now"),
    ],
)
def test_a_damaged_plan_is_refused(content, says, tmp_path):
    (tmp_path / packed.UNFINISHED).mkdir()
    (tmp_path / packed.UNFINISHED / packed.PLAN).write_bytes(content)
    with pytest.raises(UserError, match=says):
        begin(str(tmp_path), {"a": 1}, 0)


def test_unusable_folders_are_refused(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    write_photographs(photos, ["train/1.jpg", "validation/2.jpg"])
    assert "is in DATASET" in fails(photos, photos / "packed")
    assert "is in DATASET" in fails(photos, photos)
    assert "is in DATASET" in fails(photos, photos / "train" / ".." / "packed")
    assert "not a local path" in fails(photos, "gs://bucket/packed")
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "contains notes.txt: expected a new or empty folder" in fails(photos, out)
    error = fails("bundled:climate", out / "notes.txt" / "out")
    assert re.search("cannot be written: .*Not a directory", error)


def test_a_second_process_is_refused(tmp_path):
    (tmp_path / packed.UNFINISHED).mkdir()
    with open(tmp_path / packed.UNFINISHED / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another process" in fails("bundled:climate", tmp_path, "--format=raw")
