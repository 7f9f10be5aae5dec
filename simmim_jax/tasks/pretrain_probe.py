"""What the features of a pre-training run are worth, while it trains.

The loss does not show it: features may collapse while it falls.
"""

import functools
from typing import Any

import jax
import numpy as np

from simmim_jax.config.schema import Pretrain
from simmim_jax.data.loader.pipeline import EvalBatches
from simmim_jax.data.sources.base import NO_LABEL, Source, SubsetSource
from simmim_jax.runtime import sharding
from simmim_jax.tasks import inputs
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.probe import effective_rank, knn_accuracy
from simmim_jax.training import steps
from simmim_jax.training.inputs import results_of_pass, with_progress
from simmim_jax.training.run import Evaluate


def probe(
    config: Pretrain, train: Source, held_out: Source, mesh: jax.sharding.Mesh
) -> tuple[Evaluate, str]:
    """Return (params, step) -> metrics of held-out features, and what is measured.

    "effective_rank", and where both splits have the same classes "knn_top1", the share
    in 0..1 that the nearest training images classify right. Of each split at most
    config.probe.images count, the same ones every time.
    """
    queries = _sample(held_out, config)
    bank = _sample(train, config)
    is_labelled = len(train.class_names) > 1 < len(held_out.class_names)
    has_classes = is_labelled and train.class_names == held_out.class_names
    passes = inputs.eval_pass(config.data, queries)
    bank_passes = inputs.eval_pass(config.data, bank)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh, jax.P()))
    def embed(params: Any, batch: steps.Batch) -> tuple[jax.Array, ...]:
        with sharding.on_mesh(mesh):
            encoder = Encoder.of(sharding.gathered(params, mesh), config, step=0)
            vectors = encoder.apply(encoder.params, batch["image"])
        return vectors, batch["label"], batch["weight"]

    def embedded(params: Any, batches: EvalBatches) -> tuple[np.ndarray, np.ndarray]:
        results = results_of_pass(
            lambda batch, _: embed(params, batch), with_progress(batches), mesh
        )
        vectors, labels, weight = map(np.concatenate, zip(*results, strict=True))
        return vectors[weight > 0], labels[weight > 0]

    def evaluate(params: Any, step: int) -> dict[str, float]:
        del step
        vectors, expected = embedded(params, passes)
        metrics = {"effective_rank": effective_rank(vectors)}
        if not has_classes:
            return metrics
        of_bank, labels = embedded(params, bank_passes)
        known, asked = labels != NO_LABEL, expected != NO_LABEL
        if not known.any() or not asked.any():
            return metrics
        accuracy = knn_accuracy(
            of_bank[known],
            labels[known],
            vectors[asked],
            expected[asked],
            k=config.probe.k,
            temperature=config.probe.temperature,
        )
        return metrics | {"knn_top1": accuracy.top1}

    said = f"probe: effective rank of {len(queries):,} held-out images"
    if has_classes:
        said += f", classified by the nearest of {len(bank):,} training images"
    else:
        said += "; without labels of the same classes in both splits no accuracy"
    return evaluate, said


def _sample(source: Source, config: Pretrain) -> Source:
    """Return at most config.probe.images examples, in order."""
    if len(source) <= config.probe.images:
        return source
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(source), config.probe.images, replace=False)
    return SubsetSource(source, np.sort(chosen))
