"""Command line: python -m simmim_jax.aot --config=configs/vit_base.py --topology=v5e-8.

Compiles the training step for a TPU slice that is not there, with the real compiler,
and says whether it fits and what it costs, by the compiler's estimates.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from simmim_jax import slices
from simmim_jax.accelerators import Accelerator, accelerator
from simmim_jax.main import CONFIG, check_values, parse_flags

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e-8", "TPU slice, as Google Cloud spells it: v4-8, v5e-8, v5p-16."
)
SEARCH = flags.DEFINE_bool(
    "search", False, "Look for the largest batch that fits; takes several compilations."
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of tables.")

_GIB = 2**30
# Lines of a table of operations.
_SHOWN = 10


def main(argv: Sequence[str]) -> None:
    """Checks the command line, compiles, and prints what it says."""
    if len(argv) > 1:
        sys.exit(f"unexpected arguments {argv[1:]}: flags start with --")
    config = CONFIG.value
    if config is None:
        sys.exit("--config is missing: try --config=configs/vit_base.py")
    if config.get("mode") not in ("pretrain", "finetune"):
        sys.exit(
            f"config.mode={config.get('mode')!r}: expected 'pretrain' or 'finetune', "
            "one training step."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    slices.set_environment()
    try:
        check_values(config)
        result = _run(config, accelerator(TOPOLOGY.value))
    except (ValueError, ModuleNotFoundError) as error:
        # What the package itself raises is meant for the user; the rest is a bug.
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(__file__).parent not in Path(raised_in).parents:
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(result) if JSON.value else report(result), flush=True)


def _run(config: ConfigDict, of: Accelerator) -> dict[str, Any]:
    from simmim_jax import estimate

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def at(batch: int) -> dict[str, Any]:
        changed = config.copy_and_resolve_references()
        changed.data.batch_size = batch * of.chips
        say(f"{of.name}, {batch} images a chip:")
        return estimate.estimate(changed, of, say)

    say(f"{of.name}, batch {config.data.batch_size}:")
    result = estimate.estimate(config, of, say)
    if SEARCH.value:
        first = config.data.batch_size // of.chips
        known = {first: result}

        def bytes_of(batch: int) -> tuple[bool, int]:
            if batch not in known:
                known[batch] = at(batch)
            return known[batch]["fits"], known[batch]["bytes_per_chip"]

        memory = result["memory"]
        batch = estimate.largest_batch(
            bytes_of,
            first=first,
            unit=estimate.BATCH_UNIT * config.optim.accumulation,
            constant=2 * memory["parameters"] + memory["optimizer"],
            limit=memory["available"],
        )
        result["largest"] = dict(known[batch]) if batch else None
    return result


# ---- Report --------------------------------------------------------------------------


def report(r: dict[str, Any]) -> str:
    """The tables that are printed of a result."""
    memory = r["memory"]
    available, total = memory["available"] / _GIB, memory["total"] / _GIB
    lines = [
        f"\n{r['topology']}: {r['chips']} chips, {r['hosts']} "
        f"host{'s' if r['hosts'] > 1 else ''}, mesh {r['mesh']}; batch "
        f"{r['batch_size']}, {r['batch_size_per_chip']} images a chip",
        *(f"Assumed: {text}." for text in r["assumptions"]),
        f"Compiled in {r['compile_seconds']:.0f} s by jax {r['jax']}, libtpu "
        f"{r['libtpu']}. Nothing ran: all below is the compiler's estimate.",
        f"\nMemory a chip: {'fits' if r['fits'] else 'DOES NOT FIT'}, {total:.2f} of "
        f"{available:.2f} GiB",
    ]
    parts = ("parameters", "optimizer", "batch", "temporaries", "program")
    lines += [f"  {name:<14}{memory[name] / _GIB:>8.2f} GiB" for name in parts]
    if "largest" in r:
        lines.append(_largest(r["largest"]))
    if not r["fits"]:
        return "\n".join([*lines, "What to change:", *(f"  {x}" for x in r["advice"])])
    return "\n".join([*lines, *_speed(r), *_movement(r), *_operations(r)])


def _largest(r: dict[str, Any] | None) -> str:
    if r is None:
        return "No batch fits."
    return (
        f"Largest batch that fits: {r['batch_size']}, {r['batch_size_per_chip']} a "
        f"chip, {r['bytes_per_chip'] / _GIB:.2f} GiB; "
        f"{r['images_per_second_per_chip']:,.0f} images/s/chip, MFU {r['mfu']:.1%}"
    )


def _speed(r: dict[str, Any]) -> list[str]:
    kernels = r["kernel_bundles"] / 1e6
    return [
        f"\nA step: {r['cycles_per_step'] / 1e6:.1f} M cycles"
        + (f", {kernels:.1f} M of them bundles of Pallas kernels" if kernels else "")
        + f"; {1e3 * r['seconds_per_step']:.1f} ms at {r['clock'] / 1e9:g} GHz",
        f"  images/s/chip {r['images_per_second_per_chip']:>10,.0f}",
        f"  images/s      {r['images_per_second']:>10,.0f}",
        f"  MFU           {r['mfu']:>10.1%}   at {r['flops_per_image'] / 1e9:.1f} "
        "GFLOP an image",
    ]


def _movement(r: dict[str, Any]) -> list[str]:
    roofline = r["roofline"]
    lines = ["\nNo step can take less (roofline):"]
    for name, text in (
        ("compute", "matrix products at the peak rate"),
        ("memory", f"{roofline['memory_bytes'] / 1e9:.1f} GB through main memory"),
        ("links", "collectives over all links, if nothing hides them"),
    ):
        seconds = roofline[f"{name}_seconds"]
        lines.append(f"  {name:<10}{1e3 * seconds:>8.1f} ms   {text}")
    lines.append("\nCollectives, a step and chip:")
    for kind, c in r["collectives"].items():
        lines.append(
            f"  {kind:<20}{c['times']:>5} times{c['bytes'] / 1e6:>10,.1f} MB of arrays"
            f"{c['sent_per_chip'] / 1e6:>10,.1f} MB sent"
        )
    return lines if r["collectives"] else [*lines, "  none"]


def _operations(r: dict[str, Any]) -> list[str]:
    lines = ["\nMost costly:", f"{'share':>7}{'M cycles':>10}{'times':>7}  what, where"]
    for o in r["operations"]:
        share = o["cycles"] / r["cycles_per_step"]
        lines.append(
            f"{share:>7.1%}{o['cycles'] / 1e6:>10.2f}{o['times']:>7}  {o['name']}"
            f"  {o['source']}".rstrip()
        )
    unknown = r["without_estimate"]
    lines.append(
        "\nWithout an estimate, and so not in the cycles above:\n"
        f"{'MB':>17}{'times':>7}  what, where"
    )
    lines += [
        f"{o['bytes'] / 1e6:>17,.1f}{o['times']:>7}  "
        f"{o['kind']}" + (f": {o['name']}  {o['source']}".rstrip() if o["name"] else "")
        for o in unknown[:_SHOWN]
    ]
    if rest := unknown[_SHOWN:]:
        size = sum(o["bytes"] for o in rest) / 1e6
        lines.append(f"{size:>17,.1f}{'':>7}  {len(rest)} more, which --json lists")
    return lines


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
