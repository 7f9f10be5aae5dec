"""Speed of the input: by stage, as a whole, and beside what accelerators need."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.config.schema import Finetune, RunConfig, Segment
from simmim_jax.data.codecs.registry import decode
from simmim_jax.data.loader.memory import Batch
from simmim_jax.data.loader.workers import num_cpus
from simmim_jax.data.sources.base import Source, labelled, subset
from simmim_jax.errors import UserError
from simmim_jax.monitoring.writer import write_json
from simmim_jax.runtime import sharding
from simmim_jax.runtime.accelerators import Accelerator, accelerator
from simmim_jax.tasks import inputs, targets, values
from simmim_jax.tasks.learners import learner, num_classes
from simmim_jax.tasks.segment import with_masks
from simmim_jax.tasks.views import decoding_of, train_view
from simmim_jax.training import compilation

# MFU that an accelerator is assumed to reach. Published rates of ViT-B to ViT-H on TPU
# v4 amount to 26 to 39 % (deit3-jax, README).
ASSUMED_MFU = 0.4
# Duration of each stage, and of the whole pipeline [seconds].
_STAGE_SECONDS = 1.5
_PIPELINE_SECONDS = 5.0
# Batches that do not count: threads and workers start, and the first ones are ready.
_WARM_UP = 4
# Rates are noisy: a rate is clearly lower from this share of another one down.
_CLEARLY_LESS = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of one host: means of an example, durations, rates [images/s]."""

    bytes: float
    pixels: float
    image_size: tuple[int, int]  # after cropping
    skipped: float  # share of examples that cannot be decoded
    read_seconds: float
    read_cpu_seconds: float  # the part that keeps a core busy
    decode_seconds: float  # whole image
    crop_seconds: float  # decode and crop as in training
    read_rate: float  # with all threads
    pipeline_rate: float
    copy_rate: float  # to the devices
    threads: int  # over all workers
    cores: int
    batch_size: int  # of this measurement


def bench_input(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """Measure the training input of `config` for some seconds; print a table.

    config.bench.accelerators names those to compare with. Returns what it writes to
    <workdir>/bench_input.json; nothing else is written. Each of several processes
    measures its own host, and process 0 reports.
    raises: UserError for an unknown accelerator and for data without images.
    """
    names = config.bench.accelerators.replace(",", " ").split()
    accelerators = [accelerator(name) for name in names]
    mesh = sharding.make_mesh()
    compilation.check_batch(config.data.batch_size, config.optim.accumulation, mesh)
    wanted = targets.wanted(config)
    source = inputs.open_split(config.data, config.data.train_split, wanted)
    if isinstance(config, Finetune):
        source = labelled(source)
        if config.data.num_labels:
            source = subset(source, config.data.num_labels, config.seed)
    elif isinstance(config, Segment):
        source, _ = with_masks(source, "config.data.train_split")
    config, _ = values.resolve(config, source)
    classes = max(num_classes(config, source), 2)
    flops = compilation.flops_per_image(learner(config, len(source), classes))
    if jax.process_index() == 0:
        print("measuring for about ten seconds ...", flush=True)
    measured = measure(config, source)
    stage, advice = bottleneck(measured)
    result = {
        "dataset": config.data.dataset,
        "examples": len(source),
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        **dataclasses.asdict(measured),
        "flops_per_image": flops,
        "assumed_mfu": ASSUMED_MFU,
        "accelerators": [needs(a, flops, measured) for a in accelerators],
        "bottleneck": stage,
        "advice": advice,
    }
    if jax.process_index() == 0:
        print(report(result))
        write_json(workdir / "bench_input.json", result)
    return result


# ---- Measure -------------------------------------------------------------------------


def measure(config: RunConfig, source: Source) -> Measured:
    """Measure everything, in about ten seconds."""
    order = np.random.default_rng(config.seed).permutation(len(source))
    means = one_thread(config, source, order)
    workers, threads = inputs.decoders(config.data, source)
    threads *= max(workers, 1)
    cores = num_cpus()
    seconds = means["read_seconds"] + means["crop_seconds"]
    size = batch_size(config, min(threads, cores) / seconds)
    pipeline_rate, batch = pipeline(config, source, size)
    return Measured(
        **means,
        image_size=config.data.image_size,
        read_rate=read_rate(source, order, threads),
        pipeline_rate=pipeline_rate,
        copy_rate=copy_rate(batch),
        threads=threads,
        cores=cores,
        batch_size=size,
    )


def one_thread(
    config: RunConfig, source: Source, order: np.ndarray
) -> dict[str, float]:
    """Return means over the examples `order`, as many as there is time for."""
    names = (
        "bytes", "pixels",
        "read_seconds", "read_cpu_seconds", "decode_seconds", "crop_seconds",
    )  # fmt: skip
    rows, tried, view = [], 0, train_view(config.data)
    decoding = decoding_of(config.data)
    end = time.perf_counter() + _STAGE_SECONDS
    for index in order:
        if time.perf_counter() > end:
            break
        tried += 1
        start, cpu = time.perf_counter(), time.thread_time()
        try:
            example = source[int(index)]
            data = example["image"]
            read, cpu_read = time.perf_counter(), time.thread_time()
            height, width = config.data.image_size
            if config.data.view == "image":  # others decode and crop in one
                height, width, _ = decode(data, decoding).shape
            decoded = time.perf_counter()
            view(example, np.random.default_rng(int(index)))
        except (OSError, ValueError):
            continue
        cropped = time.perf_counter()
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        seconds = read - start, cpu_read - cpu, decoded - read, cropped - decoded
        rows.append((size, height * width, *seconds))
    if not rows:
        raise UserError(
            f"config.data.dataset={config.data.dataset!r}: none of {tried} examples "
            "could be decoded."
        )
    # The first example loads libraries.
    means = np.mean(rows[len(rows) > 1 :], axis=0).tolist()
    return {**dict(zip(names, means, strict=True)), "skipped": 1 - len(rows) / tried}


def read_rate(source: Source, order: np.ndarray, threads: int) -> float:
    """Return examples a second that a number of threads only read."""
    # From the end: the first ones have been read, and are cached.
    indices = itertools.cycle(order[::-1].tolist())
    start = time.perf_counter()

    def read(_: int) -> int:
        count = 0
        while time.perf_counter() < start + _STAGE_SECONDS:
            with contextlib.suppress(OSError):
                source[next(indices)]
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(read, range(threads)))
    return count / (time.perf_counter() - start)


def batch_size(config: RunConfig, rate: float) -> int:
    """Return config.data.batch_size, or what takes half a second at `rate` if less."""
    devices = jax.device_count()
    fitting = rate * jax.process_count() / 2
    return min(config.data.batch_size, max(1, round(fitting / devices)) * devices)


def pipeline(config: RunConfig, source: Source, size: int) -> tuple[float, Batch]:
    """Return images a second that training's iterator gives this host, and a batch."""
    with contextlib.closing(
        inputs.train_batches(config, source, batch_size=size)
    ) as batches:
        for _ in range(_WARM_UP):
            next(batches)
        images, seconds, start = 0, 0.0, time.perf_counter()
        while seconds < _PIPELINE_SECONDS:
            batch = next(batches)
            images += len(batch["image"])
            seconds = time.perf_counter() - start
    return images / seconds, batch


def copy_rate(batch: Batch) -> float:
    """Return images a second copied from this host's memory to its devices."""
    mesh = sharding.make_mesh()
    jax.block_until_ready(sharding.to_devices(batch, mesh))
    images, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _STAGE_SECONDS / 3:
        jax.block_until_ready(sharding.to_devices(batch, mesh))
        images += len(batch["image"])
    return images / seconds


# ---- Judge ---------------------------------------------------------------------------


def needs(of: Accelerator, flops_per_image: float, on: Measured) -> dict[str, Any]:
    """Return what an accelerator needs, and how many cores like these feed a host."""
    rate = of.images_per_second(flops_per_image, ASSUMED_MFU)
    per_core = on.pipeline_rate / min(on.cores, on.threads)
    return {
        "name": of.name,
        "chips": of.chips,
        "hosts": of.hosts,
        "images_per_second": rate,
        "images_per_second_per_host": rate / of.hosts,
        "fed": on.pipeline_rate / (rate / of.hosts),  # share of the time
        "cores_per_host": math.ceil(rate / of.hosts / per_core),
    }


def bottleneck(measured: Measured) -> tuple[str, str]:
    """Return the stage that limits the pipeline, and what to do about it.

    Three rates bound it: that of the storage, that of the threads, each of which reads
    and decodes one image after the other, and that of the cores, which do everything
    except waiting for bytes.
    """
    m = measured
    busy = {
        "read": m.read_cpu_seconds,
        "decode": min(m.decode_seconds, m.crop_seconds),
        "crop": max(m.crop_seconds - m.decode_seconds, 0.0),
    }
    by_threads = m.threads / (m.read_seconds + m.crop_seconds)
    by_cores = m.cores / sum(busy.values())
    bound = min(m.read_rate, by_threads, by_cores)
    if m.copy_rate < m.pipeline_rate:
        return "copy", "Batches are decoded faster than they are copied to the devices."
    if m.pipeline_rate < _CLEARLY_LESS * bound:
        return "hand-over", (
            f"Reading and decoding alone would give {bound:,.0f} images/s. If no other "
            "program uses the cores, threads block each other: use several processes, "
            "--config.data.num_workers=N, with fewer --config.data.num_threads each."
        )
    are_large = m.pixels > 2 * math.prod(m.image_size)
    smaller = " or smaller images: simmim pack" if are_large else ""
    if bound < _CLEARLY_LESS * by_cores:
        if m.read_rate < _CLEARLY_LESS * by_threads:
            return "read", f"The cores wait for bytes. Use a faster disk{smaller}."
        return "threads", (
            f"{m.threads} threads, which wait for bytes in between, do not keep "
            f"{m.cores} cores busy: raise --config.data.num_threads."
        )
    stage = max(busy, key=lambda name: busy[name])
    share = busy[stage] / sum(busy.values())
    return stage, f"It takes {share:.0%} of the cores' time. Use more cores{smaller}."


def report(result: dict[str, Any]) -> str:
    """Return the tables of a result."""
    r = result
    height, width = r["image_size"]
    rates = {
        "read, 1 thread": 1 / max(r["read_seconds"], 1e-9),
        "decode, 1 thread": 1 / r["decode_seconds"],
        "decode and crop, 1 thread": 1 / r["crop_seconds"],
        f"read, {r['threads']} threads": r["read_rate"],
        f"training batches, {r['threads']} threads": r["pipeline_rate"],
        f"copy to {r['devices']}": r["copy_rate"],
    }
    lines = [
        f"\n{r['examples']:,} images of {r['dataset']}, {r['bytes'] / 1e3:,.1f} kB and "
        f"{r['pixels']:,.0f} pixels each, to {height}x{width}; {r['cores']} cores",
        f"\n{'':<36}{'images/s':>12}",
        *(f"{name:<36}{rate:>12,.0f}" for name, rate in rates.items()),
        f"\nA training step takes {r['flops_per_image'] / 1e9:,.3g} GFLOP an image. At "
        f"{r['assumed_mfu']:.0%} of their peak rate, which is assumed, they need:\n",
        f"{'':<10}{'chips':>6}{'hosts':>6}{'images/s':>15}{'a host':>15}"
        f"{'fed here':>10}{'cores a host':>14}",
        *(
            f"{a['name']:<10}{a['chips']:>6}{a['hosts']:>6}"
            f"{a['images_per_second']:>15,.0f}{a['images_per_second_per_host']:>15,.0f}"
            f"{min(a['fed'], 1):>10.1%}{a['cores_per_host']:>14,}"
            for a in r["accelerators"]
        ),
    ]
    if r["skipped"]:
        lines.append(f"\n{r['skipped']:.1%} of the examples cannot be decoded.")
    return "\n".join([*lines, f"\nBottleneck: {r['bottleneck']}. {r['advice']}"])
