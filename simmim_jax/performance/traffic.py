"""Memory traffic of a compiled program: HBM and collectives."""

import dataclasses
import math
import re
from collections.abc import Iterator

from simmim_jax.performance.hlo import Array, Instruction, Program

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
# Opcodes whose cost is that of the computations that they call.
CALLS = ("while", "conditional", "call", "async-start")
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective, and its traffic in one execution [bytes]."""

    kind: str
    bytes: int  # arrays on a chip; the whole array of a gather or scatter
    sent: float  # by each chip, with a ring algorithm
    times: int


def hbm_bytes(program: Program) -> int:
    """Return the HBM traffic of a step on a chip [bytes].

    On-chip memory (VMEM) does not count. Of an array that is sliced or updated in place
    only the slice counts.
    """
    return sum(
        times * _hbm_bytes(program, instruction, computation)
        for instruction, computation, times in program.executed()
    )


def collectives(program: Program) -> Iterator[Transfer]:
    """Yield the collectives of a step, fused ones as well.

    A TPU's reduce-scatter is a fusion named all-reduce-scatter with an all-reduce and a
    slice.
    """
    for instruction, computation, times in program.executed():
        for found, within in _inner(program, instruction, computation):
            kind = found.opcode.removesuffix("-start")
            if _scatters(instruction):
                kind = kind.replace("all-reduce", "reduce-scatter")
            if kind in COLLECTIVES:
                before = [program.computations[within][n] for n in found.operands]
                given = sum(a.bytes for operand in before for a in operand.arrays)
                yield _transfer(kind, found, given, times)


def _scatters(instruction: Instruction) -> bool:
    return instruction.opcode == "fusion" and instruction.computation(
        "calls"
    ).startswith("all-reduce-scatter")


def _transfer(kind: str, found: Instruction, given: int, times: int) -> Transfer:
    returned = sum(a.bytes for a in found.arrays)
    if found.opcode.endswith("-start") and kind != "all-reduce":
        returned -= given  # the result includes the operands
    size = given if kind == "reduce-scatter" else returned
    members = group_size(found)
    share = (members - 1) / members if members else 1
    if kind == "all-reduce":
        share *= 2
    elif kind in ("collective-permute", "collective-broadcast"):
        share = 1
    return Transfer(kind, size, share * size, times)


def group_size(collective: Instruction) -> int:
    """Return the number of chips that take part; 0 if unknown."""
    text = collective.attributes
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 0


def _inner(
    program: Program, instruction: Instruction, computation: str
) -> Iterator[tuple[Instruction, str]]:
    """Yield the instruction and those that it fuses."""
    yield instruction, computation
    if instruction.opcode == "fusion":
        name = instruction.computation("calls")
        for inner in program.computations[name].values():
            yield from _inner(program, inner, name)


def _hbm_bytes(program: Program, instruction: Instruction, computation: str) -> int:
    if instruction.is_free or instruction.opcode in CALLS:
        return 0
    arrays = instruction.arrays
    if instruction.opcode == "copy-start":
        return sum(a.bytes for a in arrays[:2] if a.in_hbm)
    if instruction.opcode.endswith("slice-start"):
        source, target = arrays[0], arrays[1]
        smaller = min(source.bytes, target.bytes)
        return smaller * (source.in_hbm + target.in_hbm)
    known = program.computations[computation]
    operands = [known[name] for name in instruction.operands]
    moved = _written(program, instruction, arrays, known)
    for number, operand in enumerate(operands):
        whole = sum(a.bytes for a in operand.arrays if a.in_hbm)
        if whole:
            moved += min(whole, _read(program, instruction, number, whole, known))
    return moved


def _written(
    program: Program,
    instruction: Instruction,
    arrays: list[Array],
    known: dict[str, Instruction],
) -> int:
    """Return bytes written to HBM; of an update in place those of the update."""
    roots, inner = [(instruction, arrays)], known
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.computation("calls")]
        root = next(i for i in inner.values() if i.is_root)
        if root.opcode == "tuple":
            parts = [inner[name] for name in root.operands]
            roots = [(p, [a]) for p, a in zip(parts, arrays, strict=False)]
        else:
            roots = [(root, arrays)]
    total = 0
    for root, results in roots:
        while root.opcode == "bitcast":
            root = inner[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            update = sum(a.bytes for a in inner[root.operands[1]].arrays)
            total += sum(min(update, a.bytes) for a in results if a.in_hbm)
        else:
            total += sum(a.bytes for a in results if a.in_hbm)
    return total


def _read(
    program: Program,
    instruction: Instruction,
    number: int,
    whole: int,
    known: dict[str, Instruction],
) -> int:
    """Return bytes that an instruction reads of operand `number`."""
    if instruction.opcode in _SLICES and number == 0:
        return sum(a.bytes for a in instruction.arrays)
    if instruction.opcode == "dynamic-update-slice":
        return 0 if number == 0 else whole
    if instruction.opcode == "bitcast":
        return _read_by_users(program, instruction.name, whole, known)
    if instruction.opcode != "fusion":
        return whole
    inner = program.computations[instruction.computation("calls")]
    parameter = next(
        i
        for i in inner.values()
        if i.opcode == "parameter" and i.attributes.startswith(f"({number})")
    )
    return _read_by_users(program, parameter.name, whole, inner)


def _read_by_users(
    program: Program, name: str, whole: int, known: dict[str, Instruction]
) -> int:
    total = 0
    for user in known.values():
        for number, operand in enumerate(user.operands):
            if operand == name:
                total += _read(program, user, number, whole, known)
    return min(total, whole)
