"""Costs of real programs by source line."""

from pathlib import Path

import pytest

from simmim_jax.performance import hlo, schedule, step_cost

PROGRAMS = Path(__file__).parents[1] / "programs"


def cost(name, bundles=lambda kernel: None):
    return step_cost.cost(hlo.parse((PROGRAMS / name).read_text()), bundles)


def test_operations_add_up_to_the_cycles():
    found = cost("loops.hlo")
    program = hlo.parse((PROGRAMS / "loops.hlo").read_text())
    assert found.cycles == found.estimated_cycles == program.cycles()
    assert sum(o.cycles for o in found.operations) == found.cycles
    cycles = [o.cycles for o in found.operations]
    assert cycles == sorted(cycles, reverse=True)
    assert found.kernel_bundles == 0


def test_operations_have_a_line_and_a_direction():
    found = cost("loops.hlo")
    forward = [o for o in found.operations if o.name.startswith("forward ")]
    backward = [o for o in found.operations if o.name.startswith("backward ")]
    assert forward
    assert backward
    assert all(o.source.startswith("tests/programs/make.py:") for o in forward)


def test_a_kernel_costs_the_bundles_of_its_schedule():
    issued = schedule.bundles((PROGRAMS / "squares.txt").read_text())
    known = cost("squares.hlo", lambda call: issued if call.name == "squares.1" else 0)
    unknown = cost("squares.hlo")
    assert known.kernel_bundles == issued > 0
    assert known.cycles == unknown.cycles + issued
    assert known.operations[0].kind == hlo.PALLAS
    assert hlo.PALLAS not in {o.kind for o in known.unknown}
    (kernel,) = (o for o in unknown.unknown if o.kind == hlo.PALLAS)
    assert kernel.bytes == 8 * 128 * 128 * 4
    assert "squares" in kernel.name


def test_instructions_without_an_estimate_are_listed_with_their_bytes():
    found = {o.kind: o for o in cost("squares.hlo").unknown}
    assert found["reshape"].bytes == pytest.approx(8 * 120 * 128 * 4)
    assert found["reshape"].times == 1
    assert found["reshape"].source.startswith("tests/programs/make.py:")
