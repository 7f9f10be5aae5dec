"""Changes of a config that a resumed run accepts, and those that it refuses."""

import pytest
import tiny_config

from simmim_jax.config import schema
from simmim_jax.monitoring.writer import write_json
from simmim_jax.tasks.resumed import changes_of


def changes(workdir, mode, before, after, *, finished=False, record=None):
    begun = schema.to_dict(tiny_config.typed(mode, **before))
    write_json(workdir / "config.json", {"config": begun})
    config = tiny_config.typed(mode, **before | after)
    return changes_of(workdir, config, record or {})(finished)


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


def test_running_run_accepts_another_rate_and_a_finished_one_does_not(tmp_path):
    rates = {"optim.lr": 1.0}, {"optim.lr": 2.0}
    said = changes(tmp_path, "pretrain", *rates)
    assert said == ["optim.lr was 1.0, is 2.0"]
    with pytest.raises(ValueError, match=r"a finished run of another config.*\n.*lr"):
        changes(tmp_path, "pretrain", *rates, finished=True)


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
        return changes_of(tmp_path, config, {})(finished)

    assert said() == []
    with pytest.raises(ValueError, match=r"loss\.kind was 'l1', is 'l2'"):
        said(**{"loss.kind": "l2"})
