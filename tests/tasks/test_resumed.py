"""Changes of a config that a resumed run accepts, and those that it refuses."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_config

from simmim_jax.config import schema
from simmim_jax.errors import Interrupted, UserError
from simmim_jax.monitoring.writer import read_metrics, write_json
from simmim_jax.tasks.api import pretrain
from simmim_jax.tasks.resumed import changes_of, consequences
from simmim_jax.training.step_log import StepLog

OLD = Path(__file__).parents[1] / "workdirs" / "e0607c8" / "pretrain"
# The tiny config takes twelve steps of 16 images.
SEEN = {False: 6 * 16, True: 12 * 16}


def changes(workdir, mode, before, after, *, finished=False, record=None):
    begun = schema.to_dict(tiny_config.typed(mode, **before))
    write_json(workdir / "config.json", {"config": begun})
    config = tiny_config.typed(mode, **before | after)
    return changes_of(workdir, config, record or {}, 8000)(SEEN[finished])


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("log_every", "2 steps", "4 steps"),
        ("model.remat", "none", "dots"),
        ("model.scan_layers", False, True),
        ("bench.accelerators", "a100", "v5e-8"),
    ],
)
def test_harmless_changes_are_logged(field, before, after, finished, tmp_path):
    said = changes(
        tmp_path, "pretrain", {field: before}, {field: after}, finished=finished
    )
    assert said == [f"{field} was {before!r}, is {after!r}"]


def test_same_config_logs_nothing(tmp_path):
    assert changes(tmp_path, "pretrain", {}, {}, finished=True) == []


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff", b'{"config": {"mode": "pretrain"}}']
)
def test_damaged_record_is_refused_with_a_way_to_mend_it(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    config = tiny_config.typed("pretrain")
    says = r"config.json' is damaged: .*copy it from meta/metadata of the newest"
    with pytest.raises(UserError, match=says):
        changes_of(tmp_path, config, {}, 8000)(0)


def test_running_run_accepts_another_rate_and_a_finished_one_does_not(tmp_path):
    rates = {"optim.lr": 1.0}, {"optim.lr": 2.0}
    said = changes(tmp_path, "pretrain", *rates)
    assert said == [
        "optim.lr was 1.0, is 2.0",
        "learning rate 1.97e-02 -> 3.93e-02",
    ]
    with pytest.raises(UserError) as error:
        changes(tmp_path, "pretrain", *rates, finished=True)
    assert str(error.value) == (
        f"'{tmp_path}' holds a finished run, which has seen 192 examples, and "
        "config.duration='12 steps' ends there or earlier: these changes would have no "
        "effect. A larger config.duration trains on; choose another --workdir to begin "
        "anew:\n  optim.lr was 1.0, is 2.0"
    )


def test_a_refusal_begins_with_what_blocks(tmp_path):
    before = {"model.depth": 2, "log_every": "2 steps", "data.num_workers": 0}
    after = {"model.depth": 3, "log_every": "4 steps", "data.num_workers": 1}
    with pytest.raises(UserError, match="within a run these fields may not") as error:
        changes(tmp_path, "pretrain", before, after)
    _, *lines = str(error.value).splitlines()
    assert lines == [
        "  model.depth was 2, is 3",
        "  changed, too:",
        "  data.num_workers was 0, is 1",
        "  log_every was '2 steps', is '4 steps'",
    ]


def test_another_mode_is_refused_in_a_sentence(tmp_path):
    begun = schema.to_dict(tiny_config.typed("pretrain"))
    write_json(tmp_path / "config.json", {"config": begun})
    config = tiny_config.typed("finetune")
    with pytest.raises(UserError) as error:
        changes_of(tmp_path, config, {}, 8000)(SEEN[False])
    assert str(error.value) == (
        f"'{tmp_path}' holds a run with config.mode='pretrain', and this config has "
        "'finetune': choose another --workdir."
    )


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("pretrain", {"model.depth": 2}, {"model.depth": 3}),
        ("pretrain", {"target.kind": "pixels"}, {"target.kind": "normalized"}),
        ("pretrain", {"loss.kind": "l1"}, {"loss.kind": "l2"}),
        ("pretrain", {"decoder.kind": "linear"}, {"decoder.kind": "mlp"}),
        # A moving average begins and ends with a run.
        ("finetune", {"ema_decay": 0.0}, {"ema_decay": 0.9}),
        ("finetune", {"ema_decay": 0.9}, {"ema_decay": 0.0}),
        ("finetune", {"freeze_encoder": False}, {"freeze_encoder": True}),
    ],
)
def test_another_model_is_refused(mode, before, after, tmp_path):
    (field, old), (_, new) = *before.items(), *after.items()
    with pytest.raises(ValueError, match=f"{field} was {old!r}, is {new!r}"):
        changes(tmp_path, mode, before, after)


def test_another_encoder_is_refused_once_the_run_is_finished(tmp_path):
    with pytest.raises(ValueError, match="encoder was None, is '/runs/other'"):
        changes(
            tmp_path,
            "finetune",
            {},
            {},
            finished=True,
            record={"restored_from": "/runs/other"},
        )


@pytest.mark.parametrize("finished", [False, True])
def test_run_from_before_a_field_existed_resumes_with_its_default(finished, tmp_path):
    old = schema.to_dict(tiny_config.typed("pretrain"))
    del old["loss"], old["model"]["init_std"], old["data"]["dtype"]
    write_json(tmp_path / "config.json", {"config": old})

    def said(**fields):
        config = tiny_config.typed("pretrain", **fields)
        return changes_of(tmp_path, config, {}, 8000)(SEEN[finished])

    assert said() == []
    with pytest.raises(ValueError, match=r"loss\.kind was 'l1', is 'l2'"):
        said(**{"loss.kind": "l2"})


# ---- Another batch size --------------------------------------------------------------

HUNDRED = {
    "data.batch_size": 20,
    "duration": "10 epochs",
    "optim.warmup": "1 epochs",
    "optim.schedule": "plain",
    "optim.warmup_lr": 0.0,
    "optim.lr": 3.2e-3,  # 1.25e-4 at a batch of 20
}


def consequences_of(after, before=None, seen=620):
    """Of other fields for a run on 100 images."""
    old, new = (
        tiny_config.typed("pretrain", **HUNDRED | (before or {}) | fields)
        for fields in ({}, after)
    )
    return consequences(old, new, 100, seen)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        # In the warm-up of 100 images, at its end, and in the cosine over 1,000.
        (60, "7.50e-05 -> 3.75e-05, steps left 47 -> 94"),
        (100, "1.25e-04 -> 6.25e-05, steps left 45 -> 90"),
        (620, "4.74e-05 -> 2.37e-05, steps left 19 -> 38"),
        (980, "1.52e-07 -> 7.61e-08, steps left 1 -> 2"),
    ],
)
def test_half_the_batch_halves_the_rate_and_doubles_the_steps_left(seen, says):
    begins = "batch size 20 -> 10: learning rate scales with the batch: "
    assert consequences_of({"data.batch_size": 10}, seen=seen) == [begins + says]


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"duration": "20 epochs"}, "learning rate 4.74e-05 -> 1.03e-04, steps left "),
        ({"optim.lr": 6.4e-3}, "learning rate 4.74e-05 -> 9.48e-05"),
        ({"optim.warmup": "800 examples"}, "learning rate 4.74e-05 -> 9.69e-05"),
        ({"optim.clip_norm": 1.0}, None),
    ],
)
def test_other_fields_say_what_they_do_to_the_rate(after, says):
    said = consequences_of(after)
    assert [text[: len(says or "")] for text in said] == ([says] if says else [])


def test_lengths_in_steps_are_named_with_the_value_that_keeps_them():
    """A step is of the present batch size: 40 of them are fewer examples now."""
    in_steps = {"duration": "50 steps", "optim.warmup": "40 steps"}
    smaller = {"data.batch_size": 10}
    begins = "batch size 20 -> 10: learning rate scales with the batch: "
    # From the 22nd of 40 steps of warm-up into the cosine, 40 of 100 images after it.
    assert consequences_of(smaller, in_steps, seen=440) == [
        begins + "6.87e-05 -> 4.09e-05, steps left 28 -> 6",
        "duration '50 steps': 1,000 -> 500 examples; '100 steps' keeps it as it was",
        "optim.warmup '40 steps': 800 -> 400 examples; '80 steps' keeps it as it was",
    ]
    scaled = {"duration": "100 steps", "optim.warmup": "80 steps"}
    assert consequences_of(smaller | scaled, in_steps, seen=440) == [
        begins + "6.87e-05 -> 3.44e-05, steps left 28 -> 56"
    ]


def test_run_that_another_batch_size_finishes_is_refused_with_a_way_on(tmp_path):
    with pytest.raises(ValueError, match="has seen 96 examples") as error:
        changes(tmp_path, "pretrain", {}, {"data.batch_size": 8})
    assert "batch size 16 -> 8: steps left 6 -> 0" in str(error.value)
    assert "'24 steps' keeps it as it was" in str(error.value)


def position(workdir, step):
    """Return how many examples a run had seen at `step`."""
    data = workdir / "checkpoints" / str(step) / "data" / "metadata"
    return json.loads(data.read_text())["examples_seen"]


def test_workdir_of_an_earlier_release_resumes_with_half_the_batch(tmp_path, capsys):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)  # at step 8 of 12
    config = tiny_config.get_config("pretrain")
    config.data.batch_size = 8
    config.pictures = 0
    with pytest.raises(ValueError, match="'24 steps' keeps it as it was"):
        pretrain(config, tmp_path)
    config.duration = "24 steps"
    assert pretrain(config, tmp_path).step == 16
    output = capsys.readouterr().out
    assert "scales with the batch: 1.16e-06 -> 4.82e-07, steps left 4 -> 8" in output
    assert "resumed at step 8 of 16" in output
    assert position(tmp_path, 16) == 12 * 16
    rates = {
        line["step"]: line["learning_rate"]
        for line in read_metrics(tmp_path / "metrics.jsonl")
        if "loss" in line
    }
    assert list(rates) == list(range(1, 17))
    peak = 1e-4 * 8 / 512
    for step in range(9, 17):
        progress = (step + 8 - 2) / 24  # the official cosine is late by one step
        expected = peak * (1 + np.cos(np.pi * progress)) / 2
        assert rates[step] == pytest.approx(expected, rel=1e-6)


def interrupted_at(step, monkeypatch, config, workdir, **data):
    """Train until a signal that is heard before `step`."""
    logged = StepLog.add

    def add(self, now, *args):
        logged(self, now, *args)
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "add", add)
        with pytest.raises(Interrupted, match=f"at step {step} of"):
            pretrain(config, workdir, **data)


@pytest.mark.slow
def test_ten_epochs_of_a_hundred_images_are_a_thousand_with_two_batch_sizes(
    tmp_path, monkeypatch
):
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 1), np.uint8)
    data = {"data": images, "held_out": images[:20]}
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict(
        HUNDRED | {"eval_every": "4 epochs", "checkpoint_every": "0 epochs"}
    )
    config.pictures = 0
    interrupted_at(31, monkeypatch, config, tmp_path, **data)
    config.data.batch_size = 10
    interrupted_at(40, monkeypatch, config, tmp_path, **data)
    assert pretrain(config, tmp_path, **data).step == 69
    assert position(tmp_path, 69) == 1000
    lines = read_metrics(tmp_path / "metrics.jsonl")
    # Evaluated after 400, 800 and 1,000 examples.
    assert [x["step"] for x in lines if "eval_loss" in x] == [20, 49, 69]
    rates = {x["step"]: x["learning_rate"] for x in lines if "loss" in x}
    assert list(rates) == list(range(1, 70))
    # The cosine from 100 to 1,000 examples, scaled with the batch.
    for step, peak, seen in (
        (31, 1.25e-4, 600),
        (32, 6.25e-5, 620),
        (69, 6.25e-5, 990),
    ):
        expected = peak * (1 + np.cos(np.pi * (seen - 100) / 900)) / 2
        assert rates[step] == pytest.approx(expected, rel=1e-6)
    # Finished with the new batch size, and not to be resumed with the old one.
    assert pretrain(config, tmp_path, **data).step == 69
    config.data.batch_size = 20
    with pytest.raises(ValueError, match="a finished run, which has seen 1,000 ex"):
        pretrain(config, tmp_path, **data)
