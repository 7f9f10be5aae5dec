"""Schedules that the TPU compiler dumps: how many bundles an operation runs.

A bundle is what a core issues in a cycle. Pallas kernels have no estimate of cycles in
the compiled program; their schedules tell what they cost, memory stalls apart.
"""

import os
import re
from pathlib import Path

from simmim_jax.errors import UserError

_PASS = "packed-bundles-post-ra"
_BUNDLE = re.compile(r" *0?x?([0-9a-f]+) (?:[A-Z]{2})? *:")
# A branch takes effect after so many more bundles.
_DELAY_SLOTS = 4


def dump_to(folder: str | Path) -> None:
    """Has libtpu write schedules into a folder; before it starts in this process."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder} "
        "--xla_jf_dump_llo_text=true "
        f"--xla_jf_dump_llo_pass_label_regex=^{_PASS}"
    )


def dumped(folder: str | Path, instruction: str) -> str | None:
    """The last schedule in `folder` of the instruction of that name; None: none."""
    found = sorted(
        path
        for path in Path(folder).glob(f"*-{instruction}-[0-9]*-{_PASS}.txt")
        if re.fullmatch(rf"\d+-{re.escape(instruction)}-\d+-{_PASS}\.txt", path.name)
    )
    return found[-1].read_text() if found else None


def dumped_bundles(folder: str | Path, instruction: str) -> int | None:
    """Bundles of the instruction of that name; None: its schedule does not tell."""
    text = dumped(folder, instruction)
    try:
        return bundles(text) if text else None
    except ValueError:
        return None


def bundles(text: str) -> int:
    """Bundles that run: those in loops count as often as the loops do.

    Branches count as if they were always taken, so that of a kernel's pipeline what
    fills and empties it counts in full.
    raises: ValueError for a loop of unknown length.
    """
    lines = [line for line in text.splitlines() if _BUNDLE.match(line)]
    times = [1] * len(lines)
    for address, line in enumerate(lines):
        for branch in re.finditer(
            r"sbr\.rel \((!?)(%p\w+)\) target bundleno = (\d+)", line
        ):
            start = int(branch[3])
            if start <= address:
                runs = _runs(lines, start, branch[2], bool(branch[1]))
                end = min(address + _DELAY_SLOTS + 1, len(lines))
                times[start:end] = [n * runs for n in times[start:end]]
    return sum(times)


def _runs(lines: list[str], start: int, predicate: str, until: bool) -> int:
    """How often the loop runs that begins at bundle `start`."""
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
        f"nobody knows how often the loop at bundle {start} runs: expected an index "
        f"that is counted up to a constant, the loop ends by {predicate}."
    )


def _unspilled(text: str, name: str) -> str:
    """The scalar that a name holds, if it was only kept in memory for a while."""
    loaded = re.search(rf"{name} = sld \[smem:\[(#\w+_spill)\]\]", text)
    if not loaded:
        return name
    stored = re.findall(rf"sst \[smem:\[{loaded[1]}\]\] (%s\w+)", text)
    return stored[0] if len(stored) == 1 else name
