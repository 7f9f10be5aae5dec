"""`simmim aot`: the command line, and small models compiled for TPU."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import commands
import jax
import pytest
import tiny_config

from simmim_jax.cli import aot
from simmim_jax.performance import estimate
from simmim_jax.runtime.accelerators import accelerator
from simmim_jax.training import compilation

TINY = str(Path(__file__).parents[1] / "tiny_config.py")
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"),
    reason="needs the TPU compiler: pip install -e '.[dev,tpu]'",
)


def run(*args, ok=True):
    """Return the output of the command, or with ok=False its error."""
    done = subprocess.run(
        [sys.executable, "-m", "simmim_jax.aot", *args],
        capture_output=True,
        text=True,
        cwd=commands.ROOT,
        timeout=600,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def compiled():
    """Return a function: mode -> JSON of its step on four chips."""
    results = {}

    def compile_mode(mode):
        if mode not in results:
            out = run(f"--config={TINY}:{mode}", "--topology=v5e-4", "--json")
            results[mode] = json.loads(out.splitlines()[-1])
        return results[mode]

    return compile_mode


@needs_libtpu
@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_a_small_model_fits_and_has_a_cost(compiled, mode):
    result = compiled(mode)
    learner, _ = estimate.learner_of(tiny_config.typed(mode))
    params = jax.eval_shape(learner.init, jax.random.key(0))
    size = sum(p.size for p in jax.tree.leaves(params))
    assert result["fits"] is True
    memory = result["memory"]
    assert memory["parameters"] == 4 * size
    assert memory["optimizer"] == pytest.approx(8 * size, abs=100)
    assert memory["batch"] == 4 * (28 * 28 + 4)  # four of sixteen images, and labels
    assert result["bytes_per_chip"] >= sum(
        memory[part] for part in ("parameters", "optimizer", "batch", "temporaries")
    )
    assert memory["available"] == round(15.75 * 2**30)
    assert result["chips"] == 4
    cycles, clock = result["cycles_per_step"], 1.5e9
    assert cycles > 0
    assert result["seconds_per_step"] == cycles / clock
    rate = result["images_per_second_per_chip"]
    assert rate == pytest.approx(4 * clock / cycles)
    flops = compilation.flops_per_image(learner)
    assert result["mfu"] == pytest.approx(rate * flops / 197e12)
    assert 0 < result["mfu"] < 1
    assert sum(o["cycles"] for o in result["operations"]) <= cycles
    assert result["without_estimate"]


@needs_libtpu
def test_augmentation_has_a_line_and_moves_no_image(compiled):
    options = ("num_ops=2", "erase_prob=0.5", "cutmix_alpha=1", "mix_group=4")
    out = run(
        *(f"--config={TINY}:finetune", "--topology=v5e-4", "--json"),
        *(f"--config.augment.{option}" for option in options),
    )
    result = json.loads(out)
    cycles = result["preparation_cycles"]
    assert 0 < compiled("finetune")["preparation_cycles"] < cycles
    assert cycles < result["cycles_per_step"]
    assert set(result["collectives"]) == {"all-reduce"}
    # TPUs gather slowly, and the compiler has no estimate for it.
    unknown = [o["name"] for o in result["without_estimate"]]
    assert not [n for n in unknown if "preparation" in n and "gather" in n]
    assert not [n for n in unknown if "preparation" in n and "scatter" in n]
    share = f"{cycles / result['cycles_per_step']:.1%}"
    report = aot.report(result | {"assumptions": []})
    assert re.search(rf"augmentation +{share} .*: {cycles / 1e6:.2f} M cycles", report)


@needs_libtpu
def test_chips_exchange_only_gradients_in_bulk(compiled):
    result = compiled("pretrain")
    (reduced,) = result["collectives"].values()
    sent, size = reduced["sent_per_chip"], result["memory"]["parameters"]
    assert sent == pytest.approx(2 * 3 / 4 * reduced["bytes"], abs=1)
    # In float32, the type of this config, with a few scalars.
    assert reduced["bytes"] == pytest.approx(size, rel=0.05)


@needs_libtpu
def test_attention_kernels_count():
    out = run(
        *(f"--config={TINY}:pretrain", "--config.model.attention=pallas"),
        *("--topology=v5e-1", "--json"),
    )
    result = json.loads(out)
    assert result["kernel_bundles"] > 0
    assert not any("kernel" in text for text in result["assumptions"])


def test_given_batch_may_be_the_largest(monkeypatch):
    """Estimates are made up: otherwise the given batch would have to fill a chip."""

    def made_up(config, of, say):
        batch = config.data.batch_size // of.chips
        memory = {"parameters": 0, "optimizer": 0, "available": 100}
        size = {"fits": batch <= 16, "bytes_per_chip": 6 * batch, "memory": memory}
        return size | {"batch_size": config.data.batch_size}

    monkeypatch.setattr(estimate, "estimate", made_up)
    config = tiny_config.typed("pretrain", **{"data.batch_size": 64})
    result = aot._run(config, accelerator("v5e-4"), search=True)
    assert json.loads(json.dumps(result))["largest"]["batch_size"] == 64


@needs_libtpu
def test_costly_lines_are_in_the_package(compiled):
    sources = [o["source"] for o in compiled("pretrain")["operations"] if o["source"]]
    assert sources
    for source in sources:
        file, line = source.rsplit(":", 1)
        assert (commands.ROOT / file).read_text().splitlines()[int(line) - 1].strip()


@needs_libtpu
def test_report_has_the_same_figures(compiled):
    text = aot.report(compiled("pretrain") | {"assumptions": ["a"]})
    for part in (
        "fits, 0.0",
        "of 15.75 GiB",
        "images/s/chip",
        "MFU",
        "all-reduce",
        "simmim_jax/",
        "Without an estimate",
        "Nothing ran",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "--config is missing"),
        (
            ("--config", f"{TINY}:pretrain", "--topology=v5e-3"),
            "expected one of v5e-1, v5e-4, v5e-8",
        ),
        (("--config", f"{TINY}:pretrain", "--topology=h100"), "expected a TPU slice"),
        (("--config", f"{TINY}:pretrain", "--topology=v9-8"), "is no accelerator"),
        (
            ("--config", "configs/quickstart.py"),
            "expected 'pretrain', 'finetune' or 'segment'",
        ),
        (("--config", f"{TINY}:pretrain", "--config.depth=3"), "unknown config field"),
    ],
)
def test_errors_are_sentences(args, message):
    said = run(*args, ok=False)
    assert message in said
    assert "Traceback" not in said


@needs_libtpu
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("data.batch_size=6", "must be a multiple of 4"),
        ("mesh.fsdp=3", "config.mesh asks for"),
        ("model.num_heads=3", "embed_dim=16 must be a multiple"),
    ],
)
def test_errors_of_a_run_are_found_before_compiling(field, message):
    args = (f"--config={TINY}:pretrain", f"--config.{field}", "--topology=v5e-4")
    said = run(*args, ok=False)
    assert message in said
    assert "Traceback" not in said
