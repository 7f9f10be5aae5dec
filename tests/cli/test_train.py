"""Errors of the command line: at once, and as a helpful sentence."""

import json
import subprocess
import sys
import time

import commands
import pytest
import tiny_config
from PIL import Image

from simmim_jax.cli import arguments
from simmim_jax.cli.train import check
from simmim_jax.errors import MissingPackageError
from simmim_jax.tasks.api import pretrain

PRETRAIN = "--config=tests/tiny_config.py:pretrain"
FINETUNE = "--config=tests/tiny_config.py:finetune"


ERRORS = [
    ([], "--config is missing: try --config=quickstart"),
    (["--config=configs/nope.py"], "--config=configs/nope.py does not exist"),
    (["--config=configs/quickstart.py:x"], "expected 'smoke' or nothing"),
    ([PRETRAIN, "--config.optim.lrr=1"], 'field lrr: Did you mean "lr"'),
    (
        [PRETRAIN, "--config.data.batch_size=abc"],
        "config.data.batch_size='abc': expected a whole number.",
    ),
    ([PRETRAIN, "--config.data.dataset=/none"], "'/none' does not exist"),
    (
        ["--config=configs/vit_base.py", "--config.data.data_dir=/none"],
        "download_and_prepare",
    ),
    ([PRETRAIN, "--config.data.image_size=28"], "expected height and width"),
    ([PRETRAIN, "--config.data.channels=3"], "expected one number for each"),
    ([PRETRAIN, "--config.data.batch_size=0"], "batch_size=0: expected 1 or more"),
    ([PRETRAIN, "--config.optim.accumulation=-1"], "expected 1 or more"),
    ([PRETRAIN, "--config.profile.num_steps=-1"], "expected 0 or more"),
    ([PRETRAIN, "--config.mode=compare"], "this config is no comparison"),
    (
        ["--config=configs/climate.py", "--config.mode=pretrain"],
        "this config is a comparison",
    ),
    ([PRETRAIN, "--config.dtype=float16"], "expected one of ('auto'"),
    ([PRETRAIN, "--config.data.eval_crop=1.2"], "expected 0 to 1"),
    ([PRETRAIN, "--config.data.max_bad_fraction=5"], "expected 0 to 1"),
    ([PRETRAIN, "--config.data.num_threads=0"], "expected 1 or more, or -1"),
    ([PRETRAIN, "--config.ema_decay=1"], "config.ema_decay=1.0: expected 0 up to"),
    ([PRETRAIN, "--config.data.interpolation=x"], "expected one of ('nearest'"),
    ([PRETRAIN, "--config.mode=train"], "config.mode='train': expected one of"),
    ([FINETUNE, "--config.init_from=/none"], "'/none' has no checkpoint"),
    ([PRETRAIN, "--wrkdir=x"], 'Did you mean "--workdir"?'),
    ([PRETRAIN, "x"], "unexpected arguments ['x']"),
]
# Prints how `simmim train` ends for each list of arguments, and after how long.
ENDINGS = """
import json, sys, time
from simmim_jax.cli.train import main

endings = []
for args in json.loads(sys.argv[1]):
    begin = time.monotonic()
    try:
        main(args)
    except SystemExit as error:
        endings.append([error.code, time.monotonic() - begin])
assert "jax" not in sys.modules
print(json.dumps(endings))
"""


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Message and seconds for each of ERRORS, from a process that never imports JAX."""
    workdir = tmp_path_factory.mktemp("errors") / "run"
    cases = json.dumps([[*args, f"--workdir={workdir}"] for args, _ in ERRORS])
    found = subprocess.run(
        [sys.executable, "-c", ENDINGS, cases],
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert not workdir.exists()
    return json.loads(found.stdout)


@pytest.mark.parametrize("case", range(len(ERRORS)), ids=[str(e[0]) for e in ERRORS])
def test_errors_at_once(case, endings):
    message, seconds = endings[case]
    # A process that ends with a text prints it, and has status 1.
    assert ERRORS[case][1] in message
    assert "Traceback" not in message
    assert seconds < 5


def test_an_error_is_all_that_the_command_prints(tmp_path):
    begin = time.monotonic()
    output = commands.run(f"--workdir={tmp_path / 'run'}", status=1)
    assert output.startswith("--config is missing: try --config=quickstart")
    assert "Traceback" not in output
    # A second on an idle machine; JAX alone takes longer to import than that.
    assert time.monotonic() - begin < 5
    assert not (tmp_path / "run").exists()


def test_broken_image_is_named(tmp_path):
    for name in ("good", "bad"):
        Image.new("L", (28, 28)).save(tmp_path / f"{name}.png")
    broken = tmp_path / "bad.png"
    broken.write_bytes(broken.read_bytes()[:30])
    output = commands.run(
        *commands.tiny("pretrain", tmp_path / "run", f"data.dataset={tmp_path}"),
        status=1,
    )
    assert "Traceback" not in output
    assert f" {str(broken)!r}" in output


def test_missing_wandb_is_an_error_before_jax_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    fields = tiny_config.get_config("pretrain")
    assert check(fields)[0] == tiny_config.typed("pretrain")
    fields.wandb = True
    with pytest.raises(MissingPackageError, match="pip install wandb"):
        check(fields)
    comparison = arguments.load("quickstart", ["--config.finetune.wandb=True"])[1]
    with pytest.raises(MissingPackageError, match="pip install wandb"):
        check(comparison)


def test_bucket_as_workdir_is_an_error():
    output = commands.run(PRETRAIN, "--workdir=gs://bucket/run", status=1)
    assert "gs://bucket/run is not a local folder" in output


def test_errors_found_later_are_sentences_too(tmp_path):
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "model.patch_size=(9,9)"), status=1
    )
    assert "must be a multiple of config.model.patch_size" in output
    assert "Traceback" not in output
    # JAX adds notes to errors that are raised while it traces.
    output = commands.run(
        *commands.tiny("pretrain", tmp_path, "data.image_size=(30,28)"), status=1
    )
    assert output.strip().endswith("or config.model.patch_size.")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.patch_size", (9, 9), "must be a multiple of config.model.patch_size"),
        ("data.image_size", (30, 28), "must be multiples"),
        ("optim.accumulation", 3, "config.data.batch_size=16 must be a multiple of 3"),
        (
            "optim.schedule",
            "new",
            "one of .'official', 'official_prefix', 'plain'",
        ),
        ("optim.decay", "exponential", "expected one of .'cosine', 'linear', 'multi"),
        ("optim.decay_groups", "x", "expected one of .'official', 'intended'"),
        ("checkpoint_every", "5", "config.checkpoint_every='5': invalid duration"),
        ("mesh.fsdp", 0, "expected positive numbers with that product"),
        ("model.name", "vgg", "expected one of \\['swin'"),
    ],
)
def test_errors_are_found_before_anything_is_compiled(field, value, says, tmp_path):
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=says):
        pretrain(config, tmp_path)
