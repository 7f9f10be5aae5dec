"""HBM traffic and collectives, by hand and in real programs."""

from pathlib import Path

import pytest

from simmim_jax.performance import hlo, traffic

PROGRAMS = Path(__file__).parents[1] / "programs"
ROW = "f32[8,128]{1,0:T(8,128)}"
NEAR = "f32[8,128]{1,0:T(8,128)S(1)}"  # in VMEM
MANY = "f32[6,8,128]{2,1,0:T(8,128)}"
SIZE = 8 * 128 * 4


def program(*lines, computations=""):
    entry = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(f"{computations}\nENTRY %main (x: f32[]) -> f32[] {{\n{entry}\n}}")


def moved(*lines, computations=""):
    return traffic.hbm_bytes(program(*lines, computations=computations))


def test_reads_and_writes():
    x, near = f"%x = {ROW} parameter(0)", f"%near = {NEAR} parameter(1)"
    assert moved(x, f"%y = {ROW} negate(%x)") == 2 * SIZE
    assert moved(x, f"%y = {NEAR} negate(%x)") == SIZE
    assert moved(x, near, f"%y = {ROW} add(%x, %near)") == 2 * SIZE
    assert moved(near, f"%y = {NEAR} negate(%near)") == 0
    assert moved(x, f"%y = {ROW} bitcast(%x)") == 0


def test_prefetches_are_reads():
    x, many = f"%x = {ROW} parameter(0)", f"%many = {MANY} parameter(0)"
    copy = f"%c = ({NEAR}, {ROW}, u32[]{{:S(2)}}) copy-start(%x)"
    assert moved(x, copy, f"%d = {NEAR} copy-done(%c)") == SIZE
    part = (
        f"%s = (({MANY}), {NEAR}, s32[]{{:S(2)}}) slice-start(%many), slice={{[0:1]}}"
    )
    assert moved(many, part, f"%d = {NEAR} slice-done(%s)") == SIZE


FUSED = f"""
%take (p: f32[6,8,128], i: s32[]) -> f32[8,128] {{
  %p = {MANY} parameter(0)
  %i = s32[]{{:T(128)}} parameter(1)
  %one = f32[1,8,128]{{2,1,0:T(8,128)}} dynamic-slice(%p, %i)
  ROOT %b = {ROW} bitcast(%one)
}}

%put (p: f32[6,8,128], x: f32[8,128], i: s32[]) -> f32[6,8,128] {{
  %p = {MANY} parameter(0)
  %x = f32[1,8,128]{{2,1,0:T(8,128)}} parameter(1)
  %i = s32[]{{:T(128)}} parameter(2)
  ROOT %u = {MANY} dynamic-update-slice(%p, %x, %i)
}}

%put_and_cast (p: f32[6,8,128], x: f32[8,128], i: s32[]) -> f32[6,8,128] {{
  %p = {MANY} parameter(0)
  %x = f32[1,8,128]{{2,1,0:T(8,128)}} parameter(1)
  %i = s32[]{{:T(128)}} parameter(2)
  %u = {MANY} dynamic-update-slice(%p, %x, %i)
  ROOT %b = {MANY} bitcast(%u)
}}
"""


def test_only_the_slice_of_a_stack_counts():
    given = (
        f"%many = {MANY} parameter(0)",
        f"%x = {ROW} parameter(1)",
        "%i = s32[]{:T(128)S(2)} parameter(2)",
    )
    take = f"%y = {NEAR} fusion(%many, %i), kind=kLoop, calls=%take"
    assert moved(*given, take, computations=FUSED) == SIZE
    put = f"%z = {MANY} fusion(%many, %x, %i), kind=kLoop, calls=%put"
    assert moved(*given, put, computations=FUSED) == 2 * SIZE
    put_and_cast = f"%z = {MANY} fusion(%many, %x, %i), kind=kLoop, calls=%put_and_cast"
    assert moved(*given, put_and_cast, computations=FUSED) == 2 * SIZE
    alone = f"%z = {MANY} dynamic-update-slice(%many, %x, %i)"
    assert moved(*given, alone) == 2 * SIZE


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,1,2,3}}, to_apply=%add", 4),
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x=1", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("", 0),
    ],
)
def test_number_of_chips_that_take_part(groups, members):
    line = f"%r = {ROW} all-reduce(%x), channel_id=1, {groups}"
    (*_, found) = (
        program(f"%x = {ROW} parameter(0)", line).computations["main"].values()
    )
    assert traffic.group_size(found) == members


@pytest.mark.parametrize(
    ("kind", "given", "returned", "size", "sent"),
    [
        ("all-reduce", ROW, ROW, SIZE, 2 * 5 / 6 * SIZE),
        ("all-gather", ROW, MANY, 6 * SIZE, 5 * SIZE),
        ("reduce-scatter", MANY, ROW, 6 * SIZE, 5 * SIZE),
        ("all-to-all", MANY, MANY, 6 * SIZE, 5 * SIZE),
        ("collective-permute", ROW, ROW, SIZE, SIZE),
        ("all-gather-start", ROW, f"({ROW}, {MANY})", 6 * SIZE, 5 * SIZE),
        ("all-reduce-start", ROW, ROW, SIZE, 2 * 5 / 6 * SIZE),
    ],
)
def test_bytes_that_each_chip_sends_in_a_ring(kind, given, returned, size, sent):
    found = program(
        f"%x = {given} parameter(0)",
        f"%r = {returned} {kind}(%x), replica_groups=[1,6]<=[6]",
    )
    (transfer,) = traffic.collectives(found)
    assert transfer.kind == kind.removesuffix("-start")
    assert transfer.bytes == size
    assert transfer.sent == pytest.approx(sent)


SCATTER = f"""
%all-reduce-scatter.1 (input: f32[6,8,128]) -> f32[8,128] {{
  %input = {MANY} parameter(0)
  %sum = {MANY} all-reduce(%input), replica_groups={{{{0,1,2,3,4,5}}}}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %part = {ROW} dynamic-slice(%sum, %id), dynamic_slice_sizes={{1,8,128}}
}}
"""


def test_a_reduce_scatter_as_tpu_programs_have_it():
    (transfer,) = traffic.collectives(
        program(
            f"%x = {MANY} parameter(0)",
            f"%y = {ROW} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
            computations=SCATTER,
        )
    )
    assert (transfer.kind, transfer.bytes) == ("reduce-scatter", 6 * SIZE)
    assert transfer.sent == pytest.approx(5 * SIZE)


def test_gradients_in_a_loop_of_a_real_program():
    found = hlo.parse((PROGRAMS / "loops.hlo").read_text())
    (transfer,) = traffic.collectives(found)
    # One of six layers an iteration, in bfloat16, over four chips.
    assert (transfer.kind, transfer.times) == ("all-reduce", 6)
    assert transfer.bytes == 512 * 512 * 2
    assert transfer.sent == 2 * 3 / 4 * transfer.bytes
