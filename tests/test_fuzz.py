"""Damaged files are read or refused, and the tool that tries them notices the rest."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from simmim_jax.errors import UserError
from tests.fuzz import pool
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target, write
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import Seeds

# Cases of each target; an image takes 2 ms.
CASES, IMAGES = 150, 4000


@pytest.mark.slow
def test_damaged_files_are_read_or_refused():
    ledger = pool.Ledger(seed=0)
    images = [target for target in TARGETS if target.name == "image"]
    pool.run(TARGETS, ledger, cases=CASES)
    pool.run(images, ledger, cases=IMAGES)
    assert [a.tried for a in ledger.accounts.values()] == [
        IMAGES if target in images else CASES for target in TARGETS
    ]
    lost = {
        f"{name} {number}": found
        for name, account in ledger.accounts.items()
        for number, found in account.lost.items()
    }
    assert not lost, "\n".join(f"{case}: {found}" for case, found in lost.items())
    for name, account in ledger.accounts.items():
        if name != "index":  # a damaged cache is built again
            assert account.counts["refused"] > 0, name  # it does reach the reader


# ---- The tool itself -----------------------------------------------------------------

VALID = b"valid 123"


def misbehave(seed):
    """Do what the seed's name says once its file is damaged."""
    if (seed / "file").read_bytes() == VALID:
        return
    match seed.name:
        case "refuses":
            raise UserError("field=1: expected 2.")
        case "babbles":
            raise UserError("\n".join(map(str, range(100))))
        case "raises":
            raise KeyError("field")
        case "hangs":
            time.sleep(60)
        case "dies":
            os._exit(3)
        case "grows":
            np.ones(1_200_000_000, np.uint8)
        case "calls":
            os.system("true")


EXPECTED = {
    "reads": "read",
    "refuses": "refused",
    "babbles": "text",
    "raises": "error",
    "hangs": "hang",
    "dies": "death",
    "grows": "memory",
    "calls": "executed",
}


def make_all(folder):
    for name in EXPECTED:
        write(folder / name, {"file": VALID})


def make_harmless(folder):
    for name in ("reads", "refuses", "raises"):
        write(folder / name, {"file": VALID})


def seed_of(target, number, folder):
    """Return the seed that a case damages; "reads" where the damage has no effect."""
    valid = folder / "valid"
    if not valid.exists():
        target.make(valid)
    with Seeds(target, valid, folder).damaged(0, number) as damaged:
        unchanged = (damaged / "file").read_bytes() == VALID
        return "reads" if unchanged else damaged.name


@pytest.mark.slow
def test_every_surprise_is_charged_to_its_case(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "HANG", 6.0)
    target = Target("planted", make_all, misbehave)
    seeds = [seed_of(target, number, tmp_path) for number in range(16)]
    assert set(seeds) == set(EXPECTED)
    ledger = pool.Ledger(seed=0)
    pool.run([target], ledger, cases=16)
    account = ledger.accounts["planted"]
    assert account.tried == 16
    verdicts = [EXPECTED[name] for name in seeds]
    survived = ("read", "refused")
    assert {n: found.verdict for n, found in account.lost.items()} == {
        n: verdict for n, verdict in enumerate(verdicts) if verdict not in survived
    }
    assert sum(account.counts.values()) == 16
    for verdict in survived:
        assert account.counts[verdict] == verdicts.count(verdict)
    (exit_code,) = {f.text for f in account.lost.values() if f.verdict == "death"}
    assert exit_code.startswith("exit code 3")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_ledger_continues_and_tries_lost_cases_again(tmp_path):
    file = tmp_path / "ledger.json"
    broken = Target("planted", make_harmless, misbehave)
    pool.run([broken], pool.Ledger(0, file), cases=70, workers=1)
    first = pool.Ledger(0, file).accounts["planted"]
    assert (first.tried, sum(first.counts.values())) == (70, 70)
    assert first.lost
    mended = Target("planted", make_harmless, misbehave, refusals=(KeyError, UserError))
    ledger = pool.Ledger(0, file)
    pool.run([mended], ledger, cases=120, workers=1)
    account = ledger.accounts["planted"]
    assert (account.tried, account.lost) == (120, {})
    assert account.counts["read"] + account.counts["refused"] == 120
    row = ledger.summary().splitlines()[-1].split()
    assert row[:4] == ["planted", "120", "120", "0"]
    with pytest.raises(ValueError, match="is the ledger of --seed=0"):
        pool.Ledger(1, file)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_target_names_are_distinct_and_fit_a_folder(target):
    assert [other.name for other in TARGETS].count(target.name) == 1
    assert Path(target.name).name == target.name


FILES = {
    "a.json": b'{"a": [1, {"b": null}], "c": "d"}',
    "a.jsonl": b'{"step": 1}\n{"step": 2}\n',
    "a.csv": b"path,label\n0.png,1\n",
    "a.bin": bytes(range(256)),
    "none": b"",
}


@pytest.mark.parametrize("name", FILES)
def test_damage_follows_from_the_seed(name):
    data, other = FILES[name], b"other"

    def damaged(number):
        return mutate(random.Random(number), data, name, other)

    found = [damaged(number) for number in range(200)]
    assert found == [damaged(number) for number in range(200)]
    assert len(set(found)) > (10 if data else 1)
    assert sum(content == data for content in found) < 40 + 160 * (not data)
