"""What config.data describes: sources, views, streams of batches, evaluation passes."""

from pathlib import Path

import jax
import jax.numpy as jnp

from simmim_jax.config import schema
from simmim_jax.config.schema import Pretrain, RunConfig
from simmim_jax.data.loader.bad_examples import BadImages
from simmim_jax.data.loader.pipeline import (
    EvalBatches,
    TrainIterator,
    eval_batches,
    train_iterator,
)
from simmim_jax.data.loader.workers import num_cpus, share_out
from simmim_jax.data.sources.base import (
    ArraySource,
    SequenceSource,
    Source,
    SubsetSource,
)
from simmim_jax.data.sources.registry import open_source
from simmim_jax.data.sources.targets import TargetSource, Wanted
from simmim_jax.data.views.base import View
from simmim_jax.errors import UserError
from simmim_jax.monitoring.progress import say
from simmim_jax.runtime import distributed
from simmim_jax.tasks import views
from simmim_jax.tasks.views import eval_view, train_view
from simmim_jax.training.run import Lengths

# Class names that a run prints: enough to see whether they are the right ones.
_NAMES_SHOWN = 6


def open_split(data: schema.Data, split: str, wanted: Wanted | None = None) -> Source:
    """Open one split of the data set that config.data names.

    wanted: targets that a run learns, if that is not one class an image.
    """
    max_bytes = data.max_file_mb * 10**6
    return open_source(
        data.dataset,
        split,
        data_dir=data.data_dir,
        max_bytes=max_bytes,
        formats=views.formats(data),
        wanted=wanted,
    )


def describe(
    data: schema.Data,
    source: Source,
    held_out: Source,
    class_names: tuple[str, ...] = (),
    what: str = "classes",
) -> str:
    """Return what a run sees: data set, numbers and kind of images, what is learned."""
    text = f"{data.dataset}: {len(source):,} images to train on"
    notes = []
    if kind := views.describe(data, source):
        notes.append(kind)
    if len(source) < data.batch_size:
        times = data.batch_size / len(source)
        notes.append(f"each {times:.1f} times in a batch of {data.batch_size:,}")
    if notes:
        text += f" ({'; '.join(notes)})"
    text += f", {len(held_out):,} held out"
    if not class_names:
        return text
    first = ", ".join(class_names[:_NAMES_SHOWN])
    more = ", ..." if len(class_names) > _NAMES_SHOWN else ""
    return f"{text}, {len(class_names):,} {what}: {first}{more}"


def batch_like(
    data: schema.Data, view: View | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of each array of a global training batch.

    view: in place of that of config.data.
    """
    return {
        name: jax.ShapeDtypeStruct(
            (data.batch_size, *spec.shape), jnp.dtype(spec.dtype)
        )
        for name, spec in (view or train_view(data)).spec.items()
    }


def train_batches(
    config: RunConfig,
    source: Source,
    workdir: Path | None = None,
    *,
    view: View | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> TrainIterator:
    """Return the stream of training batches.

    workdir: where bad images are listed; None: nowhere. view, batch_size, num_workers:
    in place of those of config.data.
    """
    data = config.data
    workers, num_threads = decoders(data, source)
    return train_iterator(
        source,
        view or train_view(data),
        batch_size=(batch_size or data.batch_size) // jax.process_count(),
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=workers if num_workers is None else num_workers,
        num_threads=num_threads,
        bad=_bad_images(data, data.train_split, workdir),
    )


def eval_pass(
    data: schema.Data,
    source: Source,
    workdir: Path | None = None,
    *,
    view: View | None = None,
) -> EvalBatches:
    """Return a pass over all of `source`, resized and cropped as config.data says.

    workdir: where bad images are listed; None: nowhere. view: in place of that of
    config.data.
    """
    num_workers, num_threads = decoders(data, source)
    return eval_batches(
        source,
        view or eval_view(data),
        batch_size=data.batch_size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=max(num_workers, 1) * num_threads,
        bad=_bad_images(data, data.eval_split, workdir),
        total=distributed.total,
    )


def decoders(data: schema.Data, source: Source) -> tuple[int, int]:
    """Return processes, and threads in each, as config.data or the machine says."""
    workers, threads = data.num_workers, data.num_threads
    while isinstance(source, SubsetSource | TargetSource):
        source = source.source
    in_memory = isinstance(source, ArraySource) or (
        isinstance(source, SequenceSource) and isinstance(source.data, list | tuple)
    )
    if in_memory and workers < 0:
        workers = 0  # nothing to decode, and each process would get a copy
    return share_out(num_cpus(), workers, threads)


def lengths(config: RunConfig, num_examples: int) -> Lengths:
    """Return the lengths of a run in steps; raises UserError that names the field."""

    def num_steps(name: str) -> int:
        return schema.num_steps(config, name, num_examples)

    duration = num_steps("duration")
    if not duration:
        raise UserError(
            f"config.duration={config.duration!r}: expected more than 0, such as "
            "'1 epochs'."
        )
    return Lengths(
        duration=duration,
        log_every=num_steps("log_every"),
        eval_every=num_steps("eval_every"),
        checkpoint_every=num_steps("checkpoint_every"),
        probe_every=num_steps("probe.every") if isinstance(config, Pretrain) else 0,
    )


def _bad_images(
    data: schema.Data, split: str, workdir: Path | None
) -> BadImages | None:
    """Return the account of a split's bad images, with its list in `workdir`.

    The list is bad_images.tsv, and bad_images.<process>.tsv of other processes.
    """
    if workdir is None:
        return None
    process = jax.process_index()
    return BadImages(
        split,
        max_fraction=data.max_bad_fraction,
        path=workdir / (f"bad_images.{process}.tsv" if process else "bad_images.tsv"),
        say=say if process == 0 else None,
    )
