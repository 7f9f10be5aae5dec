"""Parse the TPU compiler's optimised HLO: instructions, trip counts and cycles.

The text (`compiled.as_text()`) has the compiler's "estimated_cycles" for most
instructions: estimates that show waste, not measurements. XLA's `cost_analysis` and
`memory_analysis` give neither cycles by source line nor trip counts, so the text is
parsed here.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from simmim_jax.errors import UserError

# Opcodes that only name existing values.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id"),
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast"}
# Custom-call target of Pallas kernels.
PALLAS = "tpu_custom_call"
# Function that contains the loops of the sampler.
_SAMPLER = "jit(_gamma)"
_BITS = {"pred": 8, "token": 0, "bf16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Size of an array [bytes], and whether it is in HBM."""

    bytes: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction: one line of the text."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str  # the rest of the line after the operands
    is_root: bool

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution, or None."""
        return _number(r'"estimated_cycles":"(\d+)"', self.attributes)

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The result; for a tuple its elements."""
        return arrays(self.shape)

    @functools.cached_property
    def op_name(self) -> str:
        """JAX's name: the path of functions and modules to a primitive."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """The opcode, or the target of a custom call."""
        if self.opcode == "custom-call":
            return self.attribute("custom_call_target").strip('"')
        return self.opcode

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing; a "-done" belongs to its "-start"."""
        name = self.kind
        return name in _FREE or name in _FREE_CALLS or name.endswith("-done")

    def attribute(self, name: str) -> str:
        """Return the value of an attribute up to the next comma, or ""."""
        found = re.search(rf"\b{name}=([^,\s]+)", self.attributes)
        return found[1] if found else ""

    def computation(self, name: str) -> str:
        """Return the name of the computation in an attribute."""
        return self.attribute(name).removeprefix("%")


Computation = dict[str, Instruction]
Place = tuple[str, int]  # file and line


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, the entry computation and the table of source lines."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, list[Place]]  # call stacks, innermost frame first

    def executed(
        self, computation: str = "", times: int = 1
    ) -> Iterator[tuple[Instruction, str, int]]:
        """Yield executed instructions, their computation, and executions in a step.

        Loop bodies are multiplied by the trip count; of branches the costliest counts.
        Fused instructions are part of their fusion.
        raises: UserError for a loop with an unknown trip count.
        """
        computation = computation or self.entry
        for instruction in self.computations[computation].values():
            yield instruction, computation, times
            if instruction.opcode == "while":
                count = times * self.trip_count(instruction, computation)
                for part in ("condition", "body"):
                    yield from self.executed(instruction.computation(part), count)
            elif instruction.opcode == "conditional":
                costliest = max(branches(instruction), key=self.cycles)
                yield from self.executed(costliest, times)
            elif instruction.opcode == "call":
                yield from self.executed(instruction.computation("to_apply"), times)
            elif instruction.opcode == "async-start":
                yield from self.executed(instruction.computation("calls"), times)

    def source(self, instruction: Instruction) -> Place | None:
        """Return its source line: the innermost outside of installed packages.

        None if the compiler inserted the instruction.
        """
        frame = _number(r"stack_frame_id=(\d+)", instruction.attributes)
        stack = self.frames.get(frame or 0, [])
        own = (place for place in stack if "site-packages" not in place[0])
        return next(own, stack[0] if stack else None)

    def cycles(self, computation: str = "") -> int:
        """Return the estimated cycles of a step on one chip.

        raises: UserError for a loop with an unknown trip count.
        """
        return sum(
            times * (instruction.cycles or 0)
            for instruction, _, times in self.executed(computation)
        )

    def trip_count(self, loop: Instruction, computation: str) -> int:
        """Return the trip count of a `while`.

        Known by annotation, or for an index that counts up by one to a constant. The
        rejection sampler of `jax.random.gamma` and `beta` counts once: it nearly always
        accepts its first draw.
        raises: UserError for other loops.
        """
        if _SAMPLER in loop.op_name.split("/"):
            return 1
        known = _number(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known is not None:
            return known
        condition = self.computations[loop.computation("condition")]
        body = self.computations[loop.computation("body")]
        before = self.computations[computation]
        test, result = (_root(part) for part in (condition, body))
        initial = before[_origin(before, loop.operands[0])]

        def number(part: Computation, name: str) -> int | None:
            """Return a constant of the loop, or one that it passes on unchanged."""
            found, index = _constant(part, name), _variable(part, name)
            if found is None and index is not None:
                kept = _variable(body, result.operands[index]) == index
                found = _constant(before, initial.operands[index]) if kept else None
            return found

        if {initial.opcode, result.opcode} == {"tuple"} and _is_less_than(test):
            index = _variable(condition, test.operands[0])
            last = number(condition, test.operands[1])
            if index is not None and last is not None:
                step = body[_origin(body, result.operands[index])]
                first = _constant(before, initial.operands[index])
                added = [
                    number(body, name)
                    for name in step.operands
                    if _variable(body, name) != index
                ]
                if step.opcode == "add" and added == [1] and first is not None:
                    return max(last - first, 0)
        raise UserError(
            f"cannot determine the trip count of loop {loop.name}: expected an index "
            "that counts up by one from a constant to a constant."
        )


def branches(conditional: Instruction) -> list[str]:
    """Return the computations of a conditional, in the order of its index."""
    found = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if found:
        return _NAME.findall(found[1])
    return [conditional.computation(f"{x}_computation") for x in ("true", "false")]


def parse(text: str) -> Program:
    """Parse optimised HLO, the result of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    name = entry = ""
    for line in text.splitlines():
        if line.startswith("  "):
            if name and (start := _INSTRUCTION.match(line)):
                instruction = _instruction(start, line)
                computations[name][instruction.name] = instruction
        elif start := _COMPUTATION.match(line):
            name = start[2]
            computations[name] = {}
            if start[1]:
                entry = name
    if not entry:
        raise UserError("the text has no ENTRY computation: expected optimised HLO.")
    return Program(computations, entry, _frames(text))


def arrays(shape: str) -> list[Array]:
    """Parse the arrays of a shape such as "(f32[8,128]{1,0:T(8,128)}, s32[])"."""
    found = []
    for kind, size, layout in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int((re.findall(r"\d+", kind) or ["0"])[0])
        count = math.prod(int(n.lstrip("<=")) for n in size.split(",") if n)
        found.append(Array(-(-bits * count // 8), not re.search(r"S\([1-9]", layout)))
    return found


def _instruction(start: re.Match, line: str) -> Instruction:
    begin = start.end()
    end = _closing(line, begin) if line[begin] == "(" else line.index(" ", begin)
    shape = line[begin:end]
    opening = line.index("(", end)
    closing = _closing(line, opening)
    opcode = line[end:opening].strip()
    return Instruction(
        name=start[2],
        opcode=opcode,
        shape=shape,
        operands=tuple(_NAME.findall(line[opening:closing])),
        # Constants and parameters have a number instead of operands.
        attributes=line[opening:]
        if opcode in ("constant", "parameter")
        else line[closing:],
        is_root=bool(start[1]),
    )


def _closing(line: str, opening: int) -> int:
    """Return the position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if not depth:
            return position + 1
    raise UserError(f"unbalanced parentheses in {line[:80]!r}.")


def _root(computation: Computation) -> Instruction:
    return next(i for i in computation.values() if i.is_root)


def _is_less_than(test: Instruction) -> bool:
    return test.opcode == "compare" and test.attribute("direction") == "LT"


def _variable(computation: Computation, name: str) -> int | None:
    """Return the index of `name` among the loop's variables, or None."""
    found = computation[_origin(computation, name)]
    if found.opcode != "get-tuple-element":
        return None
    return _number(r"index=(\d+)", found.attributes)


def _origin(computation: Computation, name: str) -> str:
    """Return the instruction that `name` is a copy of."""
    while computation[name].opcode in ("copy", "bitcast", "convert", "reshape"):
        name = computation[name].operands[0]
    return name


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation[_origin(computation, name)]
    if instruction.opcode != "constant":
        return None
    return _number(r"\((-?\d+)\)", instruction.attributes)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _frames(text: str) -> dict[int, list[Place]]:
    """Map frames to their call stacks, innermost frame first."""
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif found := re.match(r"(\d+) (.*)", line):
            table[int(found[1])] = found[2]
    files = {i: name.strip('"') for i, name in tables.get("FileNames", {}).items()}
    places = {
        i: (
            files[_number(r"file_name_id=(\d+)", row) or 0],
            _number(r"\bline=(\d+)", row) or 0,
        )
        for i, row in tables.get("FileLocations", {}).items()
    }
    stacks: dict[int, list[Place]] = {}
    for i, row in tables.get("StackFrames", {}).items():
        parent = (_number(r"parent_frame_id=(\d+)", row) or 1) - 1  # 1: no parent
        place = places[_number(r"file_location_id=(\d+)", row) or 0]
        stacks[i] = [place, *stacks.get(parent, [])]
    return stacks
