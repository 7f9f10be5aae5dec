"""Compile a config's training step for a TPU slice that is elsewhere.

    simmim aot --config=vit_base --topology=v5e-8
    simmim aot --config=vit_base --topology=v5p-16 --search

Says whether the step fits and what it costs, by the estimates of the real TPU compiler.
Needs `pip install 'simmim_jax[tpu]'` and no TPU.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from simmim_jax.cli import arguments
from simmim_jax.config import schema
from simmim_jax.config.schema import RunConfig
from simmim_jax.errors import UserError
from simmim_jax.performance import slices
from simmim_jax.runtime.accelerators import Accelerator, accelerator

_GIB = 2**30
# Lines of a table of operations.
_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Check the command line, compile, and print what the compiler says."""
    parser = arguments.parser("aot", __doc__)
    arguments.add_config(parser, "vit_base")
    parser.add_argument(
        "--topology",
        default="v5e-8",
        help="TPU slice, as Google Cloud spells it: v4-8, v5e-8, v5p-16 (%(default)s)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="look for the largest batch that fits; takes several compilations",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )
    args, fields, _ = arguments.parse(parser, argv)
    slices.set_environment()
    try:
        config = schema.parse(fields)
        if config.mode not in ("pretrain", "finetune", "segment"):
            raise UserError(
                f"config.mode={config.mode!r}: expected 'pretrain', 'finetune' or "
                "'segment', one training step."
            )
        run = schema.single(config)
        result = _run(run, accelerator(args.topology), args.search)
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(result) if args.json else report(result), flush=True)


def _run(config: RunConfig, of: Accelerator, search: bool) -> dict[str, Any]:
    from simmim_jax.performance import estimate

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def at(batch: int) -> dict[str, Any]:
        changed = schema.with_batch_size(config, batch * of.chips)
        say(f"{of.name}, {batch} images a chip:")
        return estimate.estimate(changed, of, say)

    say(f"{of.name}, batch {config.data.batch_size}:")
    result = estimate.estimate(config, of, say)
    if search:
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
    """Return the tables of a result."""
    memory = r["memory"]
    available, total = memory["available"] / _GIB, memory["total"] / _GIB
    lines = [
        f"\n{r['topology']}: {r['chips']} chips, {r['hosts']} "
        f"host{'s' if r['hosts'] > 1 else ''}, mesh {r['mesh']}; batch "
        f"{r['batch_size']}, {r['batch_size_per_chip']} images a chip",
        *(f"Assumed: {text}." for text in r["assumptions"]),
        f"Compiled in {r['compile_seconds']:.0f} s by jax {r['jax']}, libtpu "
        f"{r['libtpu']}. Nothing ran: these are the compiler's estimates.",
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
    kernels, prepared = r["kernel_bundles"] / 1e6, r["preparation_cycles"]
    return [
        f"\nA step: {r['cycles_per_step'] / 1e6:.1f} M cycles"
        + (f", {kernels:.1f} M of them bundles of Pallas kernels" if kernels else "")
        + f"; {1e3 * r['seconds_per_step']:.1f} ms at {r['clock'] / 1e9:g} GHz",
        f"  augmentation  {prepared / r['cycles_per_step']:>10.1%}   of it, and masks: "
        f"{prepared / 1e6:.2f} M cycles",
        f"  images/s/chip {r['images_per_second_per_chip']:>10,.0f}",
        f"  images/s      {r['images_per_second']:>10,.0f}",
        f"  MFU           {r['mfu']:>10.1%}   at {r['flops_per_image'] / 1e9:.1f} "
        "GFLOP an image",
    ]


def _movement(r: dict[str, Any]) -> list[str]:
    roofline = r["roofline"]
    lines = ["\nLower bounds of a step (roofline):"]
    for name, text in (
        ("compute", "matrix products at the peak rate"),
        ("memory", f"{roofline['memory_bytes'] / 1e9:.1f} GB through main memory"),
        ("links", "collectives over all links, not overlapped"),
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
        "\nWithout an estimate, and not in the cycles above:\n"
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
