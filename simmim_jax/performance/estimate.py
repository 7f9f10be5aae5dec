"""A training step on a TPU slice that is elsewhere: does it fit, what does it cost?

It is our own: XLA's analyses of a compiled TPU program give its memory, but neither
cycles nor the source lines that cost them.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import math
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simmim_jax.config import schema
from simmim_jax.config.schema import Finetune, RunConfig, Segment
from simmim_jax.data.sources.base import labelled
from simmim_jax.data.sources.registry import check_source
from simmim_jax.performance import hlo, kernels, schedule, slices, step_cost
from simmim_jax.runtime import sharding
from simmim_jax.runtime.accelerators import CHIPS, Accelerator
from simmim_jax.tasks import inputs, targets
from simmim_jax.tasks.learners import NUM_CLASSES, NUM_EXAMPLES, learner, num_classes
from simmim_jax.tasks.segment import with_masks
from simmim_jax.training import compilation
from simmim_jax.training.compilation import Plan
from simmim_jax.training.run import Learner

# The search for the largest batch tries multiples of this, times
# config.optim.accumulation [images a chip].
BATCH_UNIT = 8


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of each chip [bytes]. Of a step that does not fit, parts are unknown."""

    fits: bool
    available: int
    total: int
    parameters: int
    optimizer: int  # with moving averages
    batch: int
    temporaries: int  # activations, gradients and other arrays within a step
    program: int


def estimate(
    config: RunConfig, of: Accelerator, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compile the training step of `config` for a slice; return the estimate.

    say: prints a line of progress.
    raises: UserError where `config` makes no sense on that slice.
    """
    learns, assumptions = learner_of(config)
    mesh = sharding.make_mesh(
        config.mesh.data, config.mesh.fsdp, devices=slices.devices(of)
    )
    plan = compilation.plan(learns, mesh)
    flops = compilation.flops_per_image(learns)
    memory, text, seconds = _compile(plan, mesh, say)
    result = {
        "topology": of.name,
        "chips": of.chips,
        "hosts": of.hosts,
        "mesh": dict(mesh.shape),
        "batch_size": config.data.batch_size,
        "batch_size_per_chip": config.data.batch_size // of.chips,
        "fits": memory.fits,
        "bytes_per_chip": memory.total,
        "memory": dataclasses.asdict(memory),
        "flops_per_image": flops,
        "assumptions": assumptions,
        "compile_seconds": seconds,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }
    if not memory.fits:
        return result | {"advice": advice(config, of, memory)}
    say("reading the program ...")
    program = hlo.parse(text)
    issued: dict[kernels.Key, int | None] = {}
    if any(i.kind == hlo.PALLAS for i, _, _ in program.executed()):
        say("compiling its Pallas kernels alone ...")
        issued = kernel_bundles(config, of)
    cost = step_cost.cost(program, lambda call: issued.get(kernels.key(call)))
    if any(operation.kind == hlo.PALLAS for operation in cost.unknown):
        assumptions.append(
            "some Pallas kernels, whose schedules are unreadable, take no time"
        )
    return result | rates(cost, of, config.data.batch_size, flops)


def rates(
    cost: step_cost.Cost, of: Accelerator, batch_size: int, flops: float
) -> dict[str, Any]:
    """Return rates, roofline and costs of the slice, given the cost of a chip."""
    chip = CHIPS[of.name.partition("-")[0]]
    seconds = cost.cycles / chip.clock
    sent = sum(transfer.sent for transfer in cost.transfers.values())
    share = batch_size / of.chips
    return {
        "cycles_per_step": cost.cycles,
        "estimated_cycles": cost.estimated_cycles,
        "kernel_bundles": cost.kernel_bundles,
        "preparation_cycles": cost.preparation,
        "clock": chip.clock,
        "seconds_per_step": seconds,
        "images_per_second_per_chip": share / seconds,
        "images_per_second": batch_size / seconds,
        "mfu": share * flops / seconds / of.peak,
        "roofline": {
            "compute_seconds": share * flops / of.peak,
            "memory_seconds": cost.hbm_bytes / chip.memory,
            "links_seconds": sent / chip.links,
            "memory_bytes": cost.hbm_bytes,
        },
        "collectives": {
            kind: {"times": t.times, "bytes": t.bytes, "sent_per_chip": round(t.sent)}
            for kind, t in cost.transfers.items()
        },
        "operations": [dataclasses.asdict(o) for o in cost.operations[:10]],
        "without_estimate": [dataclasses.asdict(o) for o in cost.unknown],
    }


def learner_of(config: RunConfig) -> tuple[Learner, list[str]]:
    """Return what learns, and assumptions on a data set that does not open here."""
    data, assumed = config.data, []
    try:
        check_source(data.dataset, data.train_split, data_dir=data.data_dir)
        source = inputs.open_split(data, data.train_split, targets.wanted(config))
        if isinstance(config, Finetune):
            source = labelled(source)
        elif isinstance(config, Segment):
            source, _ = with_masks(source, "config.data.train_split")
        examples = len(source)
        classes = num_classes(config, source)
    except (OSError, ValueError, ImportError) as error:
        examples, classes = NUM_EXAMPLES, NUM_CLASSES
        assumed.append(
            f"{data.dataset} does not open here: taken for {examples:,} images"
            + ("" if config.mode == "pretrain" else f" of {classes:,} classes")
            + f" ({str(error).splitlines()[0].rstrip(':.')})"
        )
    if isinstance(config, Finetune):
        examples = config.data.num_labels or examples
    elif isinstance(config, Segment):
        examples = config.data.num_masks or examples
    return learner(config, examples, classes), assumed


def kernel_bundles(config: RunConfig, of: Accelerator) -> dict[kernels.Key, int | None]:
    """Return the bundles that the Pallas kernels of a step issue on a chip."""
    # The compiler dumps schedules only if asked before it starts.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_kernel_bundles, schema.to_dict(config), of).result()


def _kernel_bundles(
    fields: dict[str, Any], of: Accelerator
) -> dict[kernels.Key, int | None]:
    config = schema.single(schema.parse(fields))
    with tempfile.TemporaryDirectory(prefix="schedules-") as dump:
        schedule.dump_to(dump)
        devices = slices.devices(of)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
        plan = compilation.plan(learner_of(config)[0], mesh)
        traced = jax.make_jaxpr(plan.step)(plan.state, plan.batch)
        return kernels.bundles(kernels.find(traced.jaxpr), devices[0], Path(dump))


def _compile(
    plan: Plan, mesh: Mesh, say: Callable[[str], None]
) -> tuple[Memory, str, float]:
    """Return memory of a chip, the optimised program, and compile time [seconds]."""
    state = plan.state
    parts = {
        "available": available_bytes(mesh),
        "parameters": _bytes_per_chip(state.params),
        "optimizer": _bytes_per_chip((state.opt_state, state.ema)),
        "batch": _bytes_per_chip(plan.batch),
    }
    begin = time.perf_counter()
    say("tracing the training step ...")
    lowered = plan.lower()
    say(f"compiling it, which takes minutes ({time.perf_counter() - begin:.0f} s) ...")
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - begin
        held = sum(parts[name] for name in ("parameters", "optimizer", "batch"))
        total = max(needed_bytes(str(error)), held)
        memory = Memory(
            fits=False, total=total, temporaries=total - held, program=0, **parts
        )
        return memory, "", seconds
    seconds = time.perf_counter() - begin
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats, "the TPU compiler reports memory"
    assert text
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    memory = Memory(
        # The compiler accepts some steps that need slightly more than is available,
        # which it prints with two decimals.
        fits=total < parts["available"] + 0.005 * 2**30,
        total=total,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        **parts,
    )
    say(f"compiled in {seconds:.0f} s")
    return memory, text, seconds


def available_bytes(mesh: Mesh) -> int:
    """Return main memory of a chip [bytes], from the error on an oversized program."""
    whole = NamedSharding(mesh, PartitionSpec())
    large = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=whole)
    try:
        jax.jit(lambda x: x + 1).lower(large).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"available HBM \(([\d.]+)G\)", str(error))
        if found:
            return round(float(found[1]) * 2**30)
        raise
    raise RuntimeError("the TPU compiler accepts an array of 4 TiB: a new libtpu?")


def needed_bytes(message: str) -> int:
    """Return the memory in the compiler's out-of-memory message [bytes]; 0: none.

    Its first line is about temporaries alone, or about everything.
    """
    sizes = re.findall(r"([\d.]+)([KMGT])\b", message.splitlines()[0])
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return round(max((float(n) * unit[u] for n, u in sizes), default=0))


def _bytes_per_chip(tree: Any) -> int:
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


# ---- What to change ------------------------------------------------------------------


def advice(config: RunConfig, of: Accelerator, memory: Memory) -> list[str]:
    """Return flags that make a step smaller, the best one first."""
    found = []
    # Gradients have the size of the parameters.
    state = 2 * memory.parameters + memory.optimizer
    if config.mesh.fsdp == 1 and of.chips > 1 and state > memory.available / 4:
        found.append(
            f"--config.mesh.fsdp={of.chips}: parameters, gradients and moments, "
            f"{state / 2**30:.1f} GiB, are split over chips"
        )
    if config.model.remat != "full":
        found.append("--config.model.remat=full: whole blocks are computed again")
    parts = 2 * config.optim.accumulation
    if config.data.batch_size % (parts * of.chips) == 0:
        found.append(
            f"--config.optim.accumulation={parts}: the batch in {parts} "
            "micro-batches, one after the other"
        )
    found.append(
        f"a smaller --config.data.batch_size than {config.data.batch_size}, or more "
        "chips; --search finds the largest batch that fits"
    )
    return found


def largest_batch(
    bytes_of: Callable[[int], tuple[bool, int]],
    *,
    first: int,
    unit: int,
    constant: int,
    limit: int,
) -> int:
    """Return the largest batch a chip that fits, among multiples of `unit`; 0: none.

    bytes_of: batch a chip -> whether it fits, and its memory, which grows about
    linearly with the batch from `constant` on [bytes]. first: where to start. limit:
    available memory [bytes].
    """
    fits, fails = 0, 0  # largest that fits, smallest that does not
    known = {0: constant}
    guess = max(first // unit, 1) * unit
    while True:
        does, known[guess] = bytes_of(guess)
        fits, fails = (guess, fails) if does else (fits, guess)
        if fails and fails - fits <= unit:
            return fits
        (b, low), (c, high) = sorted(known.items())[-2:]
        slope = max((high - low) / (c - b), 1)
        guess = int((c + (limit - high) / slope) // unit) * unit
        guess = max(guess, fits + unit)
        guess = min(guess, fails - unit if fails else 4 * max(fits, unit))
