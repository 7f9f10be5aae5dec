"""Runs survive kills, full disks and damage: the short form of benchmarks/chaos.py."""

import dataclasses
import random

import commands
import pytest

from benchmarks import chaos, tiny_runs

END = tiny_runs.End([{"step": 1, "loss": 0.5}], {"['kernel']": "(1,) float32 ab"})


@pytest.mark.slow
def test_runs_end_alike_whatever_happens_to_them():
    wanted = {"kills": 4, "full_disks": 1, "read_only": 1, "damage": 2}
    ledger = chaos.Ledger(None)
    chaos.run(wanted, ledger, seed=0, workers=2)
    assert not any(account.lost for account in ledger.kinds.values()), ledger.summary()
    for kind, count in wanted.items():
        assert ledger.kinds[kind].survived >= count


def test_a_run_without_checkpoints_to_damage_is_lost_in_a_sentence(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(chaos, "PATIENCE", 0.0)
    tiny_runs.write_files(tmp_path)
    trial = chaos.Trial(
        chaos.Setup(tmp_path), random.Random(0), tmp_path / "run", most=1
    )
    with pytest.raises(tiny_runs.Lost, match=r"^0 checkpoints in 0 s, .*: status -9"):
        chaos.damage(trial)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"metrics": [{"step": 1, "loss": 0.6}]}, "metrics differ: {'step': 1"),
        ({"metrics": []}, "0 lines of metrics, not 1"),
        ({"params": {}}, "parameters differ: ['kernel']"),
    ],
)
def test_ends_are_compared(change, says):
    text = tiny_runs.difference(dataclasses.replace(END, **change), END)
    assert text.startswith(says)
    assert bool(text) == bool(change)


def test_a_ledger_continues(tmp_path):
    file = tmp_path / "ledger.json"
    chaos.Ledger(file).enter("kills", 0, {"SIGKILL during save": 3}, "")
    chaos.Ledger(file).enter("kills", 1, {"SIGTERM during save": 1}, "hangs")
    account = chaos.Ledger(file).kinds["kills"]
    assert (account.tried, account.survived, len(account.lost)) == (4, 3, 1)
    ledger = chaos.Ledger(file)
    ledger.enter("kills", 1, {"SIGTERM during save": 1}, "")  # mended
    assert not ledger.kinds["kills"].lost
    assert "4         4     0" in ledger.summary()


def test_a_clock_decides_the_same_metrics_as_in_other_tests():
    assert tiny_runs.TIMINGS == commands.TIMINGS
