"""Damaged checkpoints: named, set aside, and the last good one is used instead."""

import contextlib
import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import test_store
from test_store import OPTIMIZER, PARAMS, opened, shapes

from simmim_jax.checkpoints import checksums, layout, store
from simmim_jax.checkpoints.checksums import DamagedError
from simmim_jax.errors import NotFoundError

NEWEST, BEFORE, BEST = 3, 2, 1
FLIPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Workdir with steps 1 (the best), 2 and 3, read-only."""
    workdir = tmp_path_factory.mktemp("whole")
    test_store.save_all(workdir, [0.2, 0.5, 0.4], keep=3)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def folder(workdir, step=NEWEST):
    return workdir / "checkpoints" / str(step)


def files(workdir):
    """The files of the newest checkpoint, in an order that does not change."""
    found = sorted(f for f in folder(workdir).rglob("*") if f.is_file())
    # Data files have random names.
    return sorted(found, key=lambda f: (f.parent, f.stat().st_size))


def resumed(workdir):
    """Open and restore as the loop does; return step, parameters, position, metrics."""
    with opened(workdir, keep=3) as checkpoints:
        step = checkpoints.last_step()
        params, optimizer, position = checkpoints.restore(
            step, params=shapes(PARAMS), optimizer=shapes(OPTIMIZER)
        )
        test_store.assert_same(optimizer, OPTIMIZER)
        return step, params, position, checkpoints.metrics(step)


def assert_resumes(workdir, step):
    found, params, position, metrics = resumed(workdir)
    assert found == step
    expected = jax.tree.map(lambda p: np.asarray(p + step), PARAMS)
    test_store.assert_same(params, expected)
    assert position == {"position": step}
    return metrics


def assert_falls_back(workdir, caplog):
    """Resuming goes on from the step before, and says why in one sentence."""
    metrics = assert_resumes(workdir, BEFORE)
    assert metrics == {"eval_loss": 0.5, "other": 7.0}
    (said,) = {record.getMessage() for record in caplog.records}
    assert f"The checkpoint '{folder(workdir)}' is damaged: " in said
    assert f"It was moved to '{workdir}/damaged/{NEWEST}'." in said
    assert (workdir / "damaged" / str(NEWEST)).is_dir()
    assert not folder(workdir).exists()


# ---- Resume --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(FLIPS))
def test_a_flipped_bit_never_changes_what_is_resumed(seed, workdir, caplog):
    rng = random.Random(seed)
    file = rng.choice(files(workdir))
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))
    step, params, position, metrics = resumed(workdir)
    expected = jax.tree.map(lambda p: np.asarray(p + step), PARAMS)
    test_store.assert_same(params, expected)
    assert position == {"position": step}
    in_metrics = file.parent.name == "metrics"
    unused = file.name in ("_CHECKPOINT_METADATA", "commit_success.txt")
    if in_metrics:
        assert (step, metrics) == (NEWEST, {})
        assert f"metrics of checkpoint {NEWEST} are damaged" in caplog.text
    elif not (unused and file.parent == folder(workdir)):
        assert step == BEFORE
        assert f"'{folder(workdir)}' is damaged" in caplog.text


@pytest.mark.parametrize("bit", [0, 5])
def test_a_flipped_bit_in_any_byte_of_the_checksums_is_found(bit, whole):
    """Also in the name of a file, which would then not be verified."""
    file = folder(whole) / checksums.FILE
    intact = file.read_bytes()
    unnoticed = []
    try:
        for place in range(len(intact) - 1):  # but for the end of the last line
            content = bytearray(intact)
            content[place] ^= 1 << bit
            file.write_bytes(bytes(content))
            with contextlib.suppress(DamagedError):
                checksums.verify(folder(whole), layout.TO_RESUME)
                unnoticed.append((place, content[place - 20 : place + 1]))
    finally:
        file.write_bytes(intact)
    assert not unnoticed
    checksums.verify(folder(whole), layout.TO_RESUME)


def test_checksums_without_their_own_are_those_of_an_earlier_release(workdir):
    file = folder(workdir) / checksums.FILE
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert_resumes(workdir, NEWEST)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


def replace(text):
    return lambda path: path.write_text(text)


DAMAGE = {
    "no params": ("params", remove),
    "no optimizer": ("optimizer", remove),
    "no data": ("data", remove),
    "no meta": ("meta", remove),
    "empty": ("", empty),
    "empty params": ("params", empty),
    "empty optimizer": ("optimizer", empty),
    "empty data": ("data", empty),
    "empty meta": ("meta", empty),
    "meta cut": ("meta/metadata", cut),
    "meta removed": ("meta/metadata", remove),
    "meta emptied": ("meta/metadata", empty),
    "meta a list": ("meta/metadata", replace("[]")),
    "meta of another": ("meta/metadata", replace('{"step": 7}')),
    "position of another": ("data/metadata", replace('{"position": 1}')),
    "position lengthened": ("data/metadata", lengthen),
    "position removed": ("data/metadata", remove),
    "tree of params cut": ("params/_METADATA", cut),
    "tree of params removed": ("params/_METADATA", remove),
    "tree of params emptied": ("params/_METADATA", empty),
    "index of params cut": ("params/manifest.ocdbt", cut),
    "index of params removed": ("params/manifest.ocdbt", remove),
    "index of moments emptied": ("optimizer/manifest.ocdbt", empty),
    "numbers cut": ("params/ocdbt.process_0/d/*", cut),
    "numbers removed": ("params/d", remove),
    "moments removed": ("optimizer/ocdbt.process_0", remove),
    "shardings emptied": ("params/_sharding", empty),
    "checksums emptied": (checksums.FILE, empty),
    "checksums null": (checksums.FILE, replace("null")),
    "checksums of nothing": (checksums.FILE, replace('{"files": {}}')),
    "checksums of a device": (
        checksums.FILE,
        replace('{"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}}'),
    ),
    "checksums nested": (checksums.FILE, replace(9999 * "[")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(kind, workdir, caplog):
    pattern, damage = DAMAGE[kind]
    step = folder(workdir)
    path = next(step.glob(pattern)) if pattern else step
    damage(path)
    assert_falls_back(workdir, caplog)
    caplog.clear()
    assert_resumes(workdir, BEFORE)  # and says nothing the next time
    assert not caplog.records


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_an_empty_checkpoint_is_set_aside(make, workdir, caplog):
    getattr(folder(workdir, 99), make)()
    assert_resumes(workdir, NEWEST)
    assert "checkpoints/99' is damaged: params/ is missing." in caplog.text
    assert (workdir / "damaged" / "99").exists()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("damage", [remove, empty, cut])
def test_files_that_nothing_depends_on(name, damage, workdir, caplog):
    damage(folder(workdir) / name)
    assert_resumes(workdir, NEWEST)
    assert not caplog.records


def test_several_damaged_checkpoints_and_one_of_the_same_name_before(workdir, caplog):
    (workdir / "damaged" / str(NEWEST)).mkdir(parents=True)
    for step in (NEWEST, BEFORE):
        cut(folder(workdir, step) / "data" / "metadata")
    assert_resumes(workdir, BEST)
    assert f"moved to '{workdir}/damaged/{NEWEST}-2'" in caplog.text
    assert f"moved to '{workdir}/damaged/{BEFORE}'" in caplog.text


def test_with_none_left_the_run_does_not_begin_anew(workdir):
    for step in (1, 2, 3):
        cut(folder(workdir, step) / "meta" / "metadata")
    for _ in range(2):
        with pytest.raises(DamagedError, match="no undamaged checkpoint to resume"):
            opened(workdir)
    assert {p.name for p in (workdir / "damaged").iterdir()} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics", remove),
        ("metrics", cut),
        ("metrics", replace('{"eval_loss": 0.1, "other": 7.0, "quality": 9.0}')),
        (checksums.FILE, empty),
    ],
)
def test_damaged_metrics_do_not_choose_the_best(name, damage, workdir, caplog):
    damage(folder(workdir) / "metrics" / name)
    assert layout.find(workdir) == folder(workdir, BEST)
    with opened(workdir, keep=3) as checkpoints:
        assert checkpoints.last_step() == NEWEST
        assert checkpoints.best_step() == BEST
        assert not checkpoints.is_rated(NEWEST)
        checkpoints.rate(NEWEST, {"eval_loss": 0.1, "other": 7.0})
        assert checkpoints.best_step() == NEWEST
    assert f"metrics of checkpoint {NEWEST} are damaged" in caplog.text
    assert layout.find(workdir) == folder(workdir)


def test_a_set_aside_step_is_saved_again(workdir):
    cut(folder(workdir) / "data" / "metadata")
    with opened(workdir, keep=3) as checkpoints:
        test_store.save(checkpoints, NEWEST, {"eval_loss": 0.1, "other": 7.0})
    assert_resumes(workdir, NEWEST)


# ---- Older releases ------------------------------------------------------------------


@pytest.fixture
def old(workdir):
    for file in workdir.rglob(checksums.FILE):
        file.unlink()
    for file in workdir.glob("checkpoints/*/meta/metadata"):
        file.write_text(json.dumps({"config": {"model": {}, "data": {}}}))
    return workdir


def test_missing_checksums_are_a_warning(old, caplog):
    assert_resumes(old, NEWEST)
    (said,) = {record.getMessage() for record in caplog.records}
    assert f"The checkpoint '{folder(old)}' has no checksums.json" in said


@pytest.mark.parametrize(
    "kind", [kind for kind, (path, _) in DAMAGE.items() if path != checksums.FILE]
)
def test_a_damaged_one_of_an_older_release(kind, old, caplog):
    pattern, damage = DAMAGE[kind]
    damage(next(folder(old).glob(pattern)) if pattern else folder(old))
    if kind in ("position of another", "position lengthened"):
        assert resumed(old)[0] == NEWEST  # nothing can tell
    elif kind in ("numbers cut", "moments removed"):
        assert_resumes(old, NEWEST)  # Orbax has copied arrays this small elsewhere
    else:
        assert_resumes(old, BEFORE)
        assert f"'{folder(old)}' is damaged: " in caplog.text


# ---- Use -----------------------------------------------------------------------------


def test_load_takes_the_next_best_of_a_workdir(workdir, caplog):
    file = next(folder(workdir, BEST).glob("params/ocdbt.process_0/d/*"))
    lengthen(file)
    params, meta = store.load(workdir)
    assert meta == layout.read_meta(workdir) == {"step": NEWEST}
    expected = jax.tree.map(lambda p: np.asarray(p + NEWEST), PARAMS)
    test_store.assert_same(params, expected)
    assert f"'{folder(workdir, BEST)}' is damaged" in caplog.text
    assert folder(workdir, BEST).is_dir()  # reading moves nothing


def test_load_needs_no_moments(workdir):
    empty(folder(workdir, BEST) / "optimizer")
    assert layout.find(workdir) == folder(workdir, BEST)


@pytest.mark.parametrize("use", [store.load, layout.read_meta])
def test_a_damaged_checkpoint_given_by_name_is_refused(use, workdir):
    cut(folder(workdir) / "meta" / "metadata")
    with pytest.raises(DamagedError, match="meta/metadata has 5 bytes, expected 11"):
        use(folder(workdir))


def test_load_says_that_no_checkpoint_is_left(workdir):
    for step in (1, 2, 3):
        empty(folder(workdir, step) / "params")
    with pytest.raises(DamagedError, match="has no undamaged checkpoint"):
        store.load(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(NotFoundError):
        store.load(workdir)


def test_a_converted_checkpoint_has_checksums(tmp_path):
    params = jax.tree.map(np.asarray, PARAMS)
    store.write(tmp_path / "converted", params, {"config": {}})
    listed = json.loads((tmp_path / "converted" / checksums.FILE).read_text())["files"]
    assert {"meta/metadata", "params/_METADATA"} <= set(listed)
    test_store.assert_same(store.load(tmp_path / "converted")[0], params)
    lengthen(next((tmp_path / "converted/params").glob("ocdbt.process_0/d/*")))
    with pytest.raises(DamagedError, match=r"is damaged: params/ocdbt\.process_0/d/"):
        store.load(tmp_path / "converted")
