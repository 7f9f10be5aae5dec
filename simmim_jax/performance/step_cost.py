"""Cost of a compiled training step on a chip, from the compiler's estimates."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from simmim_jax.performance import traffic
from simmim_jax.performance.hlo import PALLAS, Instruction, Program
from simmim_jax.training.steps import PREPARATION

# Instructions without an estimate and with results up to this size are ignored [bytes].
_SCALARS = 128


@dataclasses.dataclass
class Operation:
    """Instructions of one source line, in the forward or backward pass."""

    name: str
    source: str
    kind: str
    times: int = 0
    cycles: int = 0  # estimated; bundles for a kernel
    bytes: int = 0  # of results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a step on a chip. Cycles are the sum over `operations`."""

    estimated_cycles: int
    kernel_bundles: int  # issued by Pallas kernels, one a cycle
    preparation: int  # estimated cycles of augmentation and masks
    hbm_bytes: int
    transfers: dict[str, traffic.Transfer]  # sums by kind
    operations: list[Operation]  # costliest first
    unknown: list[Operation]  # without an estimate, largest results first

    @property
    def cycles(self) -> int:
        """Cycles estimated by XLA plus bundles of kernels."""
        return self.estimated_cycles + self.kernel_bundles


def cost(program: Program, bundles: Callable[[Instruction], int | None]) -> Cost:
    """Sum the costs of a step.

    bundles: of a Pallas kernel, one a cycle; None if unknown, which puts the kernel
    into `Cost.unknown`.
    raises: UserError for a loop with an unknown trip count.
    """
    known: dict[tuple[str, ...], Operation] = {}
    unknown: dict[tuple[str, ...], Operation] = {}
    estimated = kernels = preparation = 0
    for instruction, computation, times in program.executed():
        if instruction.is_free or instruction.opcode in traffic.CALLS:
            continue
        cycles = instruction.cycles
        if cycles is not None:
            estimated += times * cycles
        elif instruction.kind == PALLAS:
            cycles = bundles(instruction)
            kernels += times * (cycles or 0)
        size = sum(a.bytes for a in instruction.arrays)
        if cycles is None and size <= _SCALARS:
            continue
        origin = _origin(program, instruction, computation)
        if PREPARATION in origin.op_name.split("/"):
            preparation += times * (cycles or 0)
        kind, source = instruction.kind, _place(program.source(origin))
        name = (f"{kind} of " if origin is not instruction else "") + _readable(origin)
        if kind in ("copy-start", "slice-start"):
            # Prefetches: hundreds, from many lines.
            name = source = ""
        groups = unknown if cycles is None else known
        key = (kind, name, source)
        group = groups.setdefault(key, Operation(name, source, kind))
        group.times += times
        group.cycles += times * (cycles or 0)
        group.bytes += times * size
    return Cost(
        estimated_cycles=estimated,
        kernel_bundles=kernels,
        preparation=preparation,
        hbm_bytes=traffic.hbm_bytes(program),
        transfers=_by_kind(traffic.collectives(program)),
        operations=sorted(known.values(), key=lambda o: -o.cycles),
        unknown=sorted(unknown.values(), key=lambda o: -o.bytes),
    )


def _by_kind(transfers: Iterable[traffic.Transfer]) -> dict[str, traffic.Transfer]:
    totals: dict[str, traffic.Transfer] = {}
    for t in transfers:
        before = totals.get(t.kind, traffic.Transfer(t.kind, 0, 0.0, 0))
        totals[t.kind] = traffic.Transfer(
            t.kind,
            before.bytes + t.times * t.bytes,
            before.sent + t.times * t.sent,
            before.times + t.times,
        )
    return totals


def _origin(
    program: Program, instruction: Instruction, computation: str
) -> Instruction:
    """Return the instruction, or its operand if the compiler inserted it."""
    known, found = program.computations[computation], instruction
    while not found.op_name and found.operands and found.opcode != "parameter":
        found = known[found.operands[0]]
    return found if found.op_name else instruction


def _readable(instruction: Instruction) -> str:
    """Return "backward encoder/blocks_*/mlp/fc1 dot_general", or the kind."""
    if not instruction.op_name:
        return instruction.kind
    *path, primitive = instruction.op_name.split("/")
    is_backward = any("transpose(" in part for part in path)
    is_forward = not is_backward and any("jvp(" in part for part in path)
    direction = "backward " if is_backward else "forward " if is_forward else ""
    modules = [part for part in path if "(" not in part and part != "closed_call"]
    where = re.sub(r"_\d+", "_*", "/".join(modules))
    return f"{direction}{where} {primitive}".replace("  ", " ").strip()


def _place(found: tuple[str, int] | None) -> str:
    """Return "simmim_jax/models/layers.py:98", or "" without a source line."""
    if found is None:
        return ""
    file, line = found
    package = Path(__file__).parents[2]
    path = Path(file)
    if path.is_relative_to(package):
        path = path.relative_to(package)
    return f"{path}:{line}"
