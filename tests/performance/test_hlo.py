"""Parsing programs of the real TPU compiler: cycles, trip counts, source lines.

tests/programs/make.py compiled the programs.
"""

from pathlib import Path

import pytest

from simmim_jax.errors import UserError
from simmim_jax.performance import hlo

PROGRAMS = Path(__file__).parents[1] / "programs"
# A loop with the layouts, tuples and comments of loops.hlo.
TINY = """HloModule tiny

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,128]{1,0:T(8,128)} negate(%x), backend_config={"estimated_cycles":"7"}
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %y)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %go = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%start)
  %in = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%copied, /*index=1*/%x)
  %loop = (s32[], f32[8,128]{1,0}) while(%in), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def read(name):
    return hlo.parse((PROGRAMS / name).read_text())


def executed(program, opcode):
    return [
        (instruction, times)
        for instruction, _, times in program.executed()
        if instruction.opcode == opcode
    ]


def test_loops_are_multiplied_by_their_trip_count():
    program = read("loops.hlo")
    loops = executed(program, "while")
    assert len(loops) == 2
    for loop, _ in loops:
        assert program.trip_count(loop, program.entry) == 6
    inside = [t for i, _, t in program.executed() if "/while/body/" in i.op_name]
    assert set(inside) == {6}
    reduced = sorted(times for _, times in executed(program, "all-reduce"))
    assert reduced == [6]


def test_cycles_are_summed_over_executions():
    program = read("loops.hlo")
    parts = {name: 0 for name in program.computations}
    for instruction, computation, times in program.executed():
        parts[computation] += times * (instruction.cycles or 0)
    assert sum(parts.values()) == program.cycles()
    loop = executed(program, "while")[0][0]
    body = loop.computation("body")
    once = sum(i.cycles or 0 for i in program.computations[body].values())
    assert once > 0
    assert parts[body] == 6 * once


def test_the_costliest_branch_counts():
    program = read("loops.hlo")
    ((branch, _),) = executed(program, "conditional")
    text = branch.attributes
    names = [n for n in program.computations if f"%{n}" in text.split("}")[0]]
    costs = sorted(program.cycles(name) for name in names)
    assert len(costs) == 2
    assert costs[0] < costs[1]
    counted = {computation for _, computation, _ in program.executed()}
    (chosen,) = counted.intersection(names)
    assert program.cycles(chosen) == costs[1]


def test_instructions_have_a_source_line():
    program = read("loops.hlo")
    ((sort, _),) = executed(program, "sort")
    assert sort.op_name == "jit(loops)/jit(argsort)/sort"
    file, line = program.source(sort)
    code = (PROGRAMS / "make.py").read_text().splitlines()
    assert file == "tests/programs/make.py"
    assert "argsort" in code[line - 1], "make.py has changed: run it again"
    products = [
        program.source(i)
        for i, _, _ in program.executed()
        if i.op_name.endswith("jvp()/while/body/closed_call/dot_general")
    ]
    assert products
    assert all("jnp.tanh(x @ w)" in code[line - 1] for _, line in products)


def test_kernels_and_reshapes_have_no_estimate():
    program = read("squares.hlo")
    kinds = {i.kind: i for i, _, _ in program.executed() if i.cycles is None}
    assert kinds["tpu_custom_call"].name == "squares.1"
    assert not kinds["tpu_custom_call"].is_free
    assert not kinds["reshape"].is_free
    assert kinds["parameter"].is_free


def test_arrays_of_a_shape():
    near = "bf16[25216,768]{1,0:T(8,128)(2,1)S(1)}"
    shape = f"({near}, /*index=1*/pred[3]{{0}}, u32[]{{:S(2)}}, s4[5]{{0}})"
    assert hlo.arrays(shape) == [
        hlo.Array(25216 * 768 * 2, in_hbm=False),
        hlo.Array(3, in_hbm=True),
        hlo.Array(4, in_hbm=False),
        hlo.Array(3, in_hbm=True),
    ]


def test_a_loop_that_counts_to_a_constant():
    assert hlo.parse(TINY).cycles() == (5 - 2) * 7


def test_a_loop_with_a_known_trip_count():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"11"}}'
    unknowable = TINY.replace("direction=LT", "direction=NE")
    assert hlo.parse(unknowable.replace("body=%body", known)).cycles() == 11 * 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("constant(5)", "iota()"),
        ("constant(2)", "iota()"),
        ("constant(1)", "constant(2)"),
        ("add(%i, %one)", "multiply(%i, %one)"),
    ],
)
def test_an_unknown_trip_count_is_an_error(old, new):
    with pytest.raises(UserError, match="the trip count of loop loop"):
        hlo.parse(TINY.replace(old, new)).cycles()


def test_other_text_is_an_error():
    with pytest.raises(UserError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")


def test_a_rejection_sampler_counts_once():
    name = 'metadata={op_name="jit(step)/vmap(jit(_beta))/jit(_gamma)/vmap()/while"}'
    loop = hlo.Instruction("while.1", "while", "(s32[])", (), name, is_root=False)
    assert hlo.Program({}, "", {}).trip_count(loop, "") == 1
