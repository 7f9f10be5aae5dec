"""Speed of the training step: the real one, on a synthetic batch."""

import collections
import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.checkpoints.store import Checkpointer
from simmim_jax.config.schema import RunConfig
from simmim_jax.errors import UserError
from simmim_jax.monitoring.profile import Profile
from simmim_jax.monitoring.writer import write_json
from simmim_jax.runtime import distributed, host_memory, sharding
from simmim_jax.tasks import precision
from simmim_jax.tasks.learners import learner
from simmim_jax.training import compilation, resume, steps
from simmim_jax.training.run import Learner
from simmim_jax.training.step_log import device_memory, utilization
from simmim_jax.training.steps import TrainState

# Steps after the first one that do not count: memory is allocated.
_WARM_UP = 1
StepFn = Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]


def bench(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """Measure the training step of `config` on one synthetic batch; print a table.

    No data set, pre-trained weights or input pipeline take part. Returns what it writes
    to <workdir>/bench.json. With config.profile some more steps are traced.
    raises: UserError where `config` makes no sense.
    """
    started = time.perf_counter()
    say = print if jax.process_index() == 0 else lambda *args, **kwargs: None
    config = dataclasses.replace(config, dtype=precision.of_machine(config.dtype))
    learns = learner(config, num_classes=config.bench.num_classes)
    if config.bench.checkpoint and jax.process_count() > 1:
        raise UserError(
            "config.bench.checkpoint=True measures a run of one process, and this one "
            f"has {jax.process_count()}: set it to False; checkpoint_seconds in "
            "metrics.jsonl of a training run is what checkpoints cost there."
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    plan = compilation.plan(learns, mesh)
    flops = compilation.flops_per_image(learns)

    say("compiling the training step ...", flush=True)
    begin = time.perf_counter()
    lowered = plan.lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter()
    distributed.meet()
    step_fn: StepFn = compiled
    params = jax.jit(learns.init, out_shardings=plan.shardings.params)(
        jax.random.key(config.seed)
    )
    parameters = sum(p.size for p in jax.tree.leaves(params))
    state = jax.jit(plan.fresh_state, out_shardings=plan.shardings, donate_argnums=0)(
        params
    )
    batch = sharding.to_devices(synthetic_batch(config, learns), mesh)
    host_memory.make_room()

    _, state = run(step_fn, state, batch, 1)
    first_step = time.perf_counter() - started
    say(f"measuring {config.bench.steps} steps ...", flush=True)
    durations, state = run(step_fn, state, batch, _WARM_UP + config.bench.steps)
    milliseconds = 1e3 * np.array(durations[_WARM_UP:])
    mean = milliseconds.mean() / 1e3
    rate = config.data.batch_size / mean
    result = {
        "mode": type(config)().mode,
        "model": config.model.name,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "dtype": config.dtype,
        "image_size": tuple(config.data.image_size),
        "batch_size": config.data.batch_size,
        "parameters": parameters,
        "flops_per_image": flops,
        "trace_seconds": traced - begin,
        "compile_seconds": seconds - traced,
        "first_step_seconds": first_step,
        "steps": config.bench.steps,
        "step_ms_p50": float(np.percentile(milliseconds, 50)),
        "step_ms_p95": float(np.percentile(milliseconds, 95)),
        "images_per_second": rate,
        **{"mfu": None, **utilization(rate, flops)},
        "flops_per_second_per_chip": rate * flops / jax.device_count(),
        "device_memory_planned": planned_memory(compiled),
        "device_memory": device_memory(),
    }
    if config.profile.num_steps:
        profile = Profile(workdir, start_step=0, num_steps=config.profile.num_steps)
        _, state = run(step_fn, state, batch, config.profile.num_steps, profile)
        say(f"profile written to {profile.path}")
    if config.bench.checkpoint:
        say("saving a checkpoint ...", flush=True)
        result["checkpoint"] = checkpoint_cost(workdir, state, step_fn, batch, mean)
    if jax.process_index() == 0:
        print(report(result))
        write_json(workdir / "bench.json", result)
    return result


def synthetic_batch(config: RunConfig, learner: Learner) -> dict[str, np.ndarray]:
    """Return this process's part of a batch of noise."""
    rng = np.random.default_rng(config.seed + jax.process_index())
    batch = {}
    for name, like in learner.batch.items():
        shape = (like.shape[0] // jax.process_count(), *like.shape[1:])
        if like.dtype == np.uint8:
            batch[name] = rng.integers(0, 256, shape, np.uint8)
        elif np.issubdtype(like.dtype, np.integer):
            batch[name] = rng.integers(0, config.bench.num_classes, shape, like.dtype)
        else:
            batch[name] = rng.standard_normal(shape, like.dtype)
    return batch


def run(
    step_fn: StepFn,
    state: TrainState,
    batch: steps.Batch,
    count: int,
    profile: Profile | None = None,
) -> tuple[list[float], TrainState]:
    """Run `count` steps, each started before the previous one ends, as in training.

    returns: durations between the ends of steps [seconds], and the state.
    """
    ends, running = [time.perf_counter()], collections.deque[steps.Metrics]()

    def finish(at_most: int) -> None:
        while len(running) > at_most:
            jax.device_get(running.popleft())
            ends.append(time.perf_counter())

    for number in range(count):
        sharding.await_on_cpus((state, batch))
        with profile.step(number) if profile else contextlib.nullcontext():
            state, metrics = step_fn(state, batch)
        running.append(metrics)
        # A CPU has computed it already, or computes nothing else meanwhile.
        finish(0 if jax.default_backend() == "cpu" else 1)
        if profile:
            profile.after(metrics)
    finish(0)
    return np.diff(ends).tolist(), state


def planned_memory(compiled: jax.stages.Compiled) -> int | None:
    """Return the peak memory of a device by the compiler's plan [bytes]."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def checkpoint_cost(
    workdir: Path, state: TrainState, step_fn: StepFn, batch: steps.Batch, mean: float
) -> dict[str, Any]:
    """Return how long saving blocks the loop, and how much it slows steps.

    mean: duration of a step while nothing is saved [seconds].
    """
    folder = workdir / "bench_checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    with Checkpointer(folder, keep=1, best="loss", mode="min") as checkpoints:
        begin = time.perf_counter()
        checkpoints.save(
            1,
            params=state.averaged,
            optimizer=resume.optimizer_item(state),
            data={},
            meta={},
        )
        blocked = time.perf_counter() - begin
        durations = []
        while checkpoints.is_writing():
            some, state = run(step_fn, state, batch, 1)
            durations += some
        written = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    return {
        "bytes": size,
        "held_up_seconds": blocked,
        "written_after_seconds": written,
        "steps_meanwhile": len(durations),
        "step_slowdown": sum(durations) / len(durations) / mean if durations else None,
    }


def report(result: dict[str, Any]) -> str:
    """Return the table of a result."""
    r = result
    height, width = r["image_size"]
    rows = {
        "parameters": f"{r['parameters']:,}",
        "FLOPs an image, of a step": f"{r['flops_per_image'] / 1e9:,.4g} G",
        "trace": f"{r['trace_seconds']:.1f} s",
        "compile": f"{r['compile_seconds']:.1f} s",
        "until the first step ends": f"{r['first_step_seconds']:.1f} s",
        "step, p50": f"{r['step_ms_p50']:,.1f} ms",
        "step, p95": f"{r['step_ms_p95']:,.1f} ms",
        "images/s": f"{r['images_per_second']:,.4g}",
        "images/s/chip": f"{r['images_per_second_per_chip']:,.4g}",
        "TFLOP/s/chip": f"{r['flops_per_second_per_chip'] / 1e12:,.4g}",
        "MFU": "unknown" if r["mfu"] is None else f"{r['mfu']:.1%}",
        "memory a device, planned": _gib(r["device_memory_planned"]),
        "memory a device, at most in use": _gib(r["device_memory"]),
    }
    if saved := r.get("checkpoint"):
        rows["checkpoint"] = f"{saved['bytes'] / 1e6:,.4g} MB"
        rows["blocks the loop for"] = f"{saved['held_up_seconds']:.2f} s"
        rows["is written after"] = f"{saved['written_after_seconds']:.2f} s"
        slowdown = saved["step_slowdown"]
        rows["a step meanwhile takes"] = f"{slowdown:.2f} x" if slowdown else "no time"
    return "\n".join(
        [
            f"\n{r['mode']}, {r['model']}, {r['dtype']}: {r['batch_size']} images of "
            f"{height}x{width} a step, {r['devices']}\n",
            *(f"{name:<32} {value:>16}" for name, value in rows.items()),
            *([] if r["mfu"] else ["\nThe peak rate of these devices is unknown."]),
        ]
    )


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:,.3g} GiB"
