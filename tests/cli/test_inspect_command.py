"""`simmim inspect`: what it prints, and the array that it writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from images import encoded, gradient, npy, write_photographs
from PIL import Image

from simmim_jax.cli import commands
from simmim_jax.data.views.crop import resize_center_crop

GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "data.md").read_text()


def inspect(*args) -> None:
    commands.main(["inspect", *map(str, args)])


def test_report_and_json(tmp_path, capsys):
    write_photographs(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(30)])
    (tmp_path / "a" / "bad.jpg").write_bytes(b"")
    inspect(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: 61 images (JPEG, 3 x uint8, 427x640), 2 classes"
    titles = {line.split("  ")[0] for line in lines[1:]}
    assert {"splits", "files", "sizes", "band 0", "unreadable", "note"} <= titles
    assert lines[-1].startswith("to train    simmim train --config=vit_base ")
    inspect(tmp_path, "--json", "--split=train")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        *("dataset", "splits", "files", "sampled", "encodings", "dtypes", "bands"),
        *("sizes", "sounds", "values", "classes", "unlabelled", "unreadable"),
        *("oddities", "command"),
    ]
    assert list(found["splits"]) == ["train"]
    assert found["bands"] == {"3": found["sampled"]} or found["unreadable"]


def test_the_guide_has_its_output_and_its_keys(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--example=0", "--out=first.npy")):
        inspect("bundled:climate", *flags)
        assert f"```text\n{capsys.readouterr().out}```" in GUIDE
    inspect("bundled:climate", "--sample=4", "--json")
    found = json.loads(capsys.readouterr().out)
    table = GUIDE.partition("`--json` prints one object")[2].partition("\n\nTo see")[0]
    keys = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(keys)) == list(found)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.png", gradient(5, 7, 3)),
        ("a.png", gradient(5, 7, 4)),
        ("a.png", np.arange(1000, 1035, dtype=np.uint16).reshape(5, 7)),
        ("a.npy", np.linspace(-1, 1, 70, dtype=np.float32).reshape(5, 7, 2)),
        ("a.npy", np.arange(-300, -265, dtype=np.int16).reshape(5, 7)),
        ("a.npy", np.full((5, 7, 13), 2**31 + 5, np.uint32)),
    ],
)
def test_example_has_the_values_of_the_file(name, array, tmp_path, capsys):
    data = npy(array) if name.endswith("npy") else encoded(Image.fromarray(array))
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
    out = tmp_path / "example"
    inspect(tmp_path, "--example=0", f"--out={out}")
    written = np.load(out)
    assert written.dtype == array.dtype
    np.testing.assert_array_equal(written, array.reshape(5, 7, -1))
    assert capsys.readouterr().out.startswith(f"{out}: {array.dtype} [5, 7, ")
    inspect(tmp_path, "--example=0", f"--out={out}", "--image_size=5,7")
    np.testing.assert_array_equal(np.load(out), written)


def test_example_is_resized_and_mapped_as_in_evaluation(tmp_path):
    deep = np.array([[0, 300], [4095, 2000]], np.uint16)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(encoded(Image.fromarray(deep)))
    out = tmp_path / "example.npy"
    flags = ["--example=0", f"--out={out}"]
    inspect(tmp_path, *flags, "--value_range", 0, 4095)
    # round(255 * 300 / 4095) = 19
    np.testing.assert_array_equal(np.load(out)[:, :, 0], [[0, 19], [255, 125]])
    inspect(tmp_path, *flags, "--channels=3")
    np.testing.assert_array_equal(np.load(out), np.repeat(deep[:, :, None], 3, 2))
    inspect(tmp_path, *flags, "--image_size=8,4", "--eval_crop=0.5")
    expected = resize_center_crop(deep[:, :, None], (8, 4), 0.5, "bilinear")
    np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--example=9999",), "belong together"),
        (("--example=9999", "--out=x.npy"), r"--example=9999: expected 0 to 4,609"),
        (("--example=-1", "--out=x.npy"), "--example=-1: expected 0 to"),
        (("--example=0", "--out=x.npy", "--channels=4"), r"expected \[h, w, 4\]"),
        (("--example=0", "--out=x.npy", "--eval_crop=2"), "eval_crop=2"),
        (("--example=0", "--out=x.npy", "--bands=red"), "names none of its 3 bands"),
        (("--example=0", "--out=x.npy", "--image_size=8"), "2"),
        (("--example=0", "--out=/nowhere/x.npy"), "No such file or directory"),
        (("--sample=0",), "--sample=0 must be 1 or more"),
        (("--split=tset",), "split='tset'"),
    ],
)
def test_mistakes_are_sentences(flags, says, capsys):
    with pytest.raises(SystemExit, match=says):
        inspect("bundled:climate", *flags)
