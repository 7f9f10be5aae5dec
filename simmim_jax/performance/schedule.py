"""Schedules dumped by the TPU compiler: the bundles that an instruction issues.

A core issues one bundle a cycle. The compiled program has no estimates for Pallas
kernels; their schedules give the cycles without memory stalls.
"""

import os
import re
from pathlib import Path

from simmim_jax.errors import UserError

_PASS = "packed-bundles-post-ra"
_BUNDLE = re.compile(r" *0?x?([0-9a-f]+) (?:[A-Z]{2})? *:")
# Bundles that are issued after a branch before it takes effect.
_DELAY_SLOTS = 4


def dump_to(folder: str | Path) -> None:
    """Make libtpu dump schedules; call it before libtpu starts in this process."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder} "
        "--xla_jf_dump_llo_text=true "
        f"--xla_jf_dump_llo_pass_label_regex=^{_PASS}"
    )


def dumped(folder: str | Path, instruction: str) -> str | None:
    """Return the last schedule of an instruction in `folder`, or None."""
    found = sorted(
        path
        for path in Path(folder).glob(f"*-{instruction}-[0-9]*-{_PASS}.txt")
        if re.fullmatch(rf"\d+-{re.escape(instruction)}-\d+-{_PASS}\.txt", path.name)
    )
    return found[-1].read_text() if found else None


def dumped_bundles(folder: str | Path, instruction: str) -> int | None:
    """Return the bundles of an instruction; None if its schedule does not give them."""
    text = dumped(folder, instruction)
    try:
        return bundles(text) if text else None
    except ValueError:
        return None


def bundles(text: str) -> int:
    """Count the bundles that run, multiplied by the trip counts of their loops.

    Conditional code counts as executed, so the prologue and epilogue of a kernel's
    pipeline count in full.
    raises: UserError for a loop with an unknown trip count.
    """
    lines = [line for line in text.splitlines() if _BUNDLE.match(line)]
    times = [1] * len(lines)
    for address, line in enumerate(lines):
        for branch in re.finditer(
            r"sbr\.rel \((!?)(%p\w+)\) target bundleno = (\d+)", line
        ):
            start = int(branch[3])
            if start <= address:
                count = _trip_count(lines, start, branch[2], bool(branch[1]))
                end = min(address + _DELAY_SLOTS + 1, len(lines))
                times[start:end] = [n * count for n in times[start:end]]
    return sum(times)


def _trip_count(lines: list[str], start: int, predicate: str, until: bool) -> int:
    """Return the trip count of the loop that begins at bundle `start`."""
    text = "\n".join(lines)
    number = r"(-?\d+)"
    exit_test = re.search(
        rf"{predicate} = scmp\.(ge|lt)\.s32\.totalorder (%s\w+), {number}\b", text
    )
    if exit_test and (exit_test[1] == "ge") == until:
        increment = re.search(rf"{exit_test[2]} = sadd\.s32 {number}, (%s\w+)", text)
        if increment:
            index = _unspilled(text, increment[2])
            phi = re.search(rf"{index} = sphi (%s\w+), ", text)
            first = phi and re.search(rf"{phi[1]} = smov {number}\b", text)
            if first:
                return -(-(int(exit_test[3]) - int(first[1])) // int(increment[1]))
    raise UserError(
        f"cannot determine the trip count of the loop at bundle {start}, which ends by "
        f"{predicate}: expected an index that counts up to a constant."
    )


def _unspilled(text: str, name: str) -> str:
    """Return the scalar that `name` reloads from a spill slot, or `name` itself."""
    loaded = re.search(rf"{name} = sld \[smem:\[(#\w+_spill)\]\]", text)
    if not loaded:
        return name
    stored = re.findall(rf"sst \[smem:\[{loaded[1]}\]\] (%s\w+)", text)
    return stored[0] if len(stored) == 1 else name
