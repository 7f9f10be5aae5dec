"""Counting bundles in schedules of the real TPU compiler."""

from pathlib import Path

import pytest

from simmim_jax.errors import UserError
from simmim_jax.performance import schedule

TEXT = (Path(__file__).parents[1] / "programs" / "squares.txt").read_text()


def test_loops_are_multiplied_by_their_trip_count():
    """The kernel's grid has 8 cells, each with a loop of five iterations."""
    # From the text: a loop begins at the target of its branch and ends with the four
    # delay slots behind the branch.
    bundles, cells, inner = 0xF7, 0xF4 - 0x3 + 1, 0xEC - 0x2B + 1
    # The pipeline has two more iterations: prologue and epilogue.
    assert schedule.bundles(TEXT) == bundles + (10 - 1) * cells + 10 * (5 - 1) * inner


def test_an_unknown_trip_count_is_an_error():
    unknown = TEXT.replace("/* loop exit test */", "").replace("scmp.ge.s32", "scmp.x")
    with pytest.raises(UserError, match="trip count of the loop at bundle"):
        schedule.bundles(unknown)


def test_the_schedule_of_an_instruction_is_found_by_its_name(tmp_path):
    for name in ("1-squares.1-01", "1-squares.10-01", "1-squares-01", "2-squares.1-01"):
        (tmp_path / f"{name}-packed-bundles-post-ra.txt").write_text(name)
    analysis = "3-squares.1-00-schedule-analysis_packed-bundles-post-ra.txt"
    (tmp_path / analysis).write_text("")
    assert schedule.dumped(tmp_path, "squares.1") == "2-squares.1-01"
    assert schedule.dumped(tmp_path, "cubes.1") is None


def test_bundles_of_a_dumped_schedule(tmp_path):
    path = tmp_path / "1-squares.1-01-packed-bundles-post-ra.txt"
    path.write_text(TEXT)
    assert schedule.dumped_bundles(tmp_path, "squares.1") == schedule.bundles(TEXT)
    path.write_text(TEXT.replace("scmp.ge.s32", "scmp.x"))
    assert schedule.dumped_bundles(tmp_path, "squares.1") is None
    assert schedule.dumped_bundles(tmp_path, "cubes.1") is None


def test_a_spilled_index_is_followed():
    index, slot = "%s903_s10", "[smem:[#allocation9_spill]]"
    spill = f"sst {slot} {index}  ;;  %s5000_s9 = sld {slot}  ;;  "
    increment = "%s144_s10 = sadd.s32 1, "
    assert f"{increment}{index}" in TEXT
    kept = TEXT.replace(f"{increment}{index}", f"{spill}{increment}%s5000_s9")
    assert schedule.bundles(kept) == schedule.bundles(TEXT)
    # With two writes to the slot, its value is unknown.
    with pytest.raises(UserError, match="trip count of the loop"):
        schedule.bundles(kept.replace(spill, f"{spill}sst {slot} %s1_s1  ;;  "))
