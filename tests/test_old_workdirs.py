"""Workdirs of older releases: they resume, predict, fine-tune and convert.

tests/workdirs/e0607c8 was written by revision e0607c8 with tests/tiny_config.py, whose
runs have 12 steps; what is there is their checkpoint at step 8. expected.json has what
that revision logged after step 8, and its probabilities for three images.
"""

import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest

from simmim_jax.data.sources.registry import open_source
from simmim_jax.tasks.api import load

OLD = Path(__file__).parent / "workdirs" / "e0607c8"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_resumes_with_the_numbers_of_that_release(mode, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(OLD / mode, workdir)
    output = commands.run(*commands.tiny(mode, workdir))
    assert "resumed at step 8 of 12" in output
    assert " was " not in output  # no field has changed, and none is new
    lines = [line for line in commands.metrics(workdir) if line["step"] > 8]
    assert len(lines) == len(EXPECTED[mode])
    for line, expected in zip(lines, EXPECTED[mode], strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_predicts_the_same():
    predictor = load(OLD / "finetune")
    source = open_source("bundled:fashion_mnist_10k", "validation")
    images = np.stack([predictor.prepare(source[i]["image"]) for i in range(3)])
    np.testing.assert_allclose(
        predictor(images), EXPECTED["probabilities"], rtol=1e-5, atol=1e-7
    )
    (first,) = predictor.predict([source[0]["image"]])
    assert len(first) == 10
    assert list(first.values()) == sorted(first.values(), reverse=True)


def test_fine_tuning_starts_from_it(tmp_path):
    output = commands.run(
        *commands.tiny("finetune", tmp_path, f"init_from={OLD / 'pretrain'}"),
        "--config.duration=1 steps",
    )
    assert "(step 8):\nrestored" in output


def test_converts_to_an_official_file_and_back(tmp_path):
    pytest.importorskip("safetensors")
    file, back = tmp_path / "old.safetensors", tmp_path / "back"
    module = "simmim_jax.convert"
    commands.run(OLD / "finetune", file, "--to=official", module=module)
    commands.run(
        *(file, back, "--model.num_heads=2", "--data.mean=(0.286,)"),
        *(
            "--data.std=(0.353,)",
            "--data.image_size=(28,28)",
            "--model.patch_size=(14,7)",
        ),
        module=module,
    )
    commands.assert_same(commands.params(OLD / "finetune", 8), load(back).params)
