"""Benchmark of the input: rates, needs of accelerators, and the bottleneck."""

import dataclasses
import json
import math
import re
import time

import commands
import numpy as np
import pytest
import tiny_config
from PIL import Image

from simmim_jax.data.sources.base import ArraySource
from simmim_jax.performance import bench_input as module
from simmim_jax.performance.bench_input import (
    Measured,
    bench_input,
    bottleneck,
    measure,
    needs,
    one_thread,
)
from simmim_jax.runtime.accelerators import accelerator
from simmim_jax.tasks import inputs

# A host with 8 cores and 8 threads, on which decoding takes most of the time.
DECODES = Measured(
    bytes=100e3,
    pixels=500 * 375,
    image_size=(224, 224),
    skipped=0.0,
    read_seconds=0.1e-3,
    read_cpu_seconds=0.1e-3,
    decode_seconds=2.0e-3,
    crop_seconds=2.9e-3,
    read_rate=50_000,
    pipeline_rate=2400,
    copy_rate=100_000,
    threads=8,
    cores=8,
    batch_size=1024,
)


COLOUR = {"data.channels": 3, "data.mean": (0.5,) * 3, "data.std": (0.5,) * 3}


@pytest.fixture
def brief(monkeypatch):
    """Measure so briefly that the rates mean little."""
    monkeypatch.setattr(module, "_STAGE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_PIPELINE_SECONDS", 0.2)


@pytest.mark.slow
def test_command_line_measures_a_comparison_by_its_pre_training(tmp_path):
    output = commands.run(
        "--config=configs/quickstart.py",
        "--config.mode=bench_input",
        "--config.pretrain.bench.accelerators=v4-8,h100x2",
        f"--workdir={tmp_path}",
    )
    result = json.loads((tmp_path / "bench_input.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["bench_input.json"]
    assert result["examples"] == 8000
    assert result["skipped"] == 0
    assert result["bytes"] == result["pixels"] == 28 * 28
    assert result["batch_size"] == 128
    # All stages together are no faster than one of them.
    assert result["crop_seconds"] > result["decode_seconds"] > 0
    assert result["read_rate"] > result["pipeline_rate"] > 0
    names, peaks, chips = ("v4-8", "h100x2"), (275e12, 989e12), (4, 2)
    for needed, name, peak, number in zip(
        result["accelerators"], names, peaks, chips, strict=True
    ):
        assert (needed["name"], needed["chips"]) == (name, number)
        rate = number * peak * result["assumed_mfu"] / result["flops_per_image"]
        assert needed["images_per_second"] == pytest.approx(rate)
        assert f"\n{name} " in output
    assert f"{result['pipeline_rate']:,.0f}\n" in output
    assert f"\nBottleneck: {result['bottleneck']}. {result['advice']}" in output


def test_means_of_photographs_exclude_broken_ones(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    (tmp_path / "train").mkdir()
    for name in "abcde":
        Image.fromarray(noise).save(tmp_path / "train" / f"{name}.jpg", quality=95)
    (tmp_path / "train" / "empty.jpg").touch()
    config = tiny_config.typed("pretrain", **COLOUR, **{"data.dataset": str(tmp_path)})
    source = inputs.open_split(config.data, "train")
    measured = one_thread(config, source, np.arange(6))
    assert measured["bytes"] == (tmp_path / "train" / "a.jpg").stat().st_size
    assert measured["pixels"] == 400 * 600
    assert all(measured[f"{stage}_seconds"] > 0 for stage in ("read", "decode", "crop"))
    assert measured["skipped"] == pytest.approx(1 / 6)


class Distant(ArraySource):
    """Every example takes 5 ms to read."""

    def __getitem__(self, index, /):
        time.sleep(5e-3)
        return super().__getitem__(index)


def test_waiting_for_bytes_is_distinguished_from_work(brief):
    # Smaller raw images are read by one thread.
    fields = {"data.image_size": (112, 112), "data.num_threads": 4}
    config = tiny_config.typed("pretrain", **fields)
    images = np.zeros((64, 120, 120, 1), np.uint8)
    measured = measure(config, Distant(images, None, ()))
    assert measured.read_seconds > 5e-3
    assert measured.read_cpu_seconds < 2.5e-3
    # Four threads wait at once, and cannot do better than that.
    assert 0 < measured.read_rate < 800
    assert 0 < measured.pipeline_rate < 800
    # Independent of other load on this machine:
    measured = dataclasses.replace(measured, pipeline_rate=measured.read_rate)
    assert bottleneck(measured)[0] == "threads"


@pytest.mark.parametrize(("rate", "size"), [(160, 80), (0.1, 1), (9e9, 2048)])
def test_slow_images_are_measured_in_smaller_batches(rate, size):
    config = tiny_config.typed("pretrain", **{"data.batch_size": 2048})
    assert module.batch_size(config, rate) == size


def test_only_broken_images_raise(tmp_path, brief):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
    config = tiny_config.typed("pretrain", **{"data.dataset": str(tmp_path)})
    with pytest.raises(ValueError, match=r"None of . images .* can be read"):
        bench_input(config, tmp_path / "run")


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_rematerialisation_does_not_change_what_a_step_needs(mode, tmp_path, brief):
    plain = bench_input(tiny_config.typed(mode), tmp_path)
    fields = {"model.remat": "full", "mode": "bench_input"}
    again = bench_input(tiny_config.typed(mode, **fields), tmp_path)
    assert again["flops_per_image"] == plain["flops_per_image"] > 0
    assert again["examples"] == {"pretrain": 8000, "finetune": 40}[mode]


def test_batch_that_does_not_divide_raises(tmp_path):
    config = tiny_config.typed("pretrain", **{"optim.accumulation": 3})
    with pytest.raises(ValueError, match="batch_size=16 must be a multiple of 3"):
        bench_input(config, tmp_path)


def test_unknown_accelerator_ends_it_at_once(tmp_path):
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "mode=bench_input"),
        "--config.bench.accelerators=v5e-8 v9-8",
        status=1,
    )
    assert "'v9-8' is no accelerator: expected a TPU slice such as 'v5e-8'" in output
    assert "Traceback" not in output
    assert not any(tmp_path.iterdir())


def test_needs_of_an_accelerator_from_a_host():
    # 16 chips, four with each host; 200 images/s a core.
    found = needs(accelerator("v4-32"), 110e9, dataclasses.replace(DECODES, cores=12))
    assert found["images_per_second"] == pytest.approx(16_000)
    assert found["images_per_second_per_host"] == pytest.approx(4000)
    assert found["fed"] == pytest.approx(0.6)
    assert found["cores_per_host"] == math.ceil(4000 / 300)


@pytest.mark.parametrize(
    ("changes", "stage", "says"),
    [
        ({}, "decode", "67% of the cores' time.* or smaller images: simmim pack"),
        ({"pixels": 256 * 256}, "decode", r"Use more cores\.$"),
        ({"decode_seconds": 1.0e-3}, "crop", "63% of"),
        # Decoding at the size of the crop may be faster than decoding the whole image.
        ({"decode_seconds": 4e-3}, "decode", "97% of"),
        # A disk that gives 600 images/s to any number of threads.
        (
            {"read_seconds": 5e-3, "read_rate": 600, "pipeline_rate": 590},
            "read",
            "faster disk or smaller",
        ),
        # A remote disk that could serve more threads.
        (
            {"read_seconds": 30e-3, "read_rate": 265, "pipeline_rate": 230},
            "threads",
            "8 threads, .* keep 8 cores busy: raise --config.data.num_threads",
        ),
        ({"threads": 2, "pipeline_rate": 600}, "threads", "2 threads, .* 8 cores"),
        ({"pipeline_rate": 1200}, "hand-over", "2,667 images/s.*num_workers=N"),
        ({"copy_rate": 2000}, "copy", "copied to the devices"),
    ],
)
def test_bottleneck_and_advice(changes, stage, says):
    named, advice = bottleneck(dataclasses.replace(DECODES, **changes))
    assert named == stage
    assert re.search(says, advice), advice
