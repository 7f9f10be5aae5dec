"""What fine-tuning learns but one class an image: several classes, or numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.config.schema import REGRESSION, Finetune, RunConfig
from simmim_jax.data.loader.pipeline import EvalBatches
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.targets import CLASSES, VALUES, Wanted, targets_of
from simmim_jax.errors import UserError
from simmim_jax.mim import losses
from simmim_jax.models.classifier import Classifier
from simmim_jax.runtime import sharding
from simmim_jax.tasks import target_scores, values
from simmim_jax.tasks.calibration import probabilities_of
from simmim_jax.training import steps
from simmim_jax.training.inputs import results_of_pass, with_progress
from simmim_jax.training.run import Evaluate

_EXPECTED = {
    "sigmoid": "any number of classes an image: expected a list (.csv, .tsv, .parquet, "
    'or .txt) with a column labels such as "cat;dog", columns of 1 and 0 that '
    "config.targets.columns names, or an .npz file with labels [n, m]",
    **dict.fromkeys(
        REGRESSION,
        "numbers: expected a list (.csv, .tsv, .parquet, or .txt) with columns of "
        "numbers that config.targets.columns names, or an .npz file with labels [n] or "
        "[n, m]",
    ),
}


def wanted(config: RunConfig) -> Wanted | None:
    """Return which targets a data set is opened for; None: one class or none."""
    if not isinstance(config, Finetune) or config.loss == "softmax":
        return None
    kind = VALUES if config.loss in REGRESSION else CLASSES
    return Wanted(kind, config.targets.columns)


def check(config: Finetune, source: Source, split: str) -> np.ndarray:
    """Return the targets of a source, float32 [n, m]; UserError for another kind."""
    targets = targets_of(source)
    if targets is None:
        raise UserError(
            f"config.loss={config.loss!r} learns {_EXPECTED[config.loss]}. "
            f"{config.data.dataset!r} has {_has(source)}; from Python, pass an array "
            "of float [n] or [n, m] as labels."
        )
    if np.isinf(targets).any():
        raise UserError(
            f"{config.data.dataset!r} has targets in its split {split!r} that are "
            "infinite, or too large for float32: expected numbers, or NaN where they "
            "are not known."
        )
    if (
        config.loss == "sigmoid"
        and not np.isin(targets[~np.isnan(targets)], (0, 1)).all()
    ):
        raise UserError(
            f"config.loss='sigmoid' learns classes that an image has, 1, or has not, "
            f"0: targets of {split!r} are from {np.nanmin(targets):g} to "
            f"{np.nanmax(targets):g}. Expected 1 and 0; loss='l2' learns numbers."
        )
    if np.isnan(targets).all():
        raise UserError(
            f"{config.data.dataset!r} has no known target in its split {split!r}: "
            "expected some."
        )
    return targets


def _has(source: Source) -> str:
    names = source.class_names
    return f"one of {len(names):,} classes an image" if names else "no labels"


def standardised(
    config: Finetune,
    targets: np.ndarray,
    names: tuple[str, ...],
    begun: Finetune | None,
) -> Finetune:
    """Return the config with mean and std of the numbers to learn.

    targets: float32 [n, m] of the training split; begun: config of the run that is
    resumed, whose mean and std stay.
    raises: UserError for a number that is never known.
    """
    given = config.targets
    if config.loss not in REGRESSION:
        return config
    if not given.mean and begun is not None:
        given = dataclasses.replace(
            given, mean=begun.targets.mean, std=begun.targets.std
        )
    if not given.mean:
        for name, column in zip(names, targets.T, strict=True):
            if np.isnan(column).all():
                raise UserError(
                    f"no image to train on has the number {name!r}: expected some, or "
                    "config.targets.columns without it."
                )
        # A number that is always the same is only centred.
        mean, std = np.nanmean(targets, 0, float), np.nanstd(targets, 0, float)
        given = dataclasses.replace(
            given,
            mean=tuple(mean.tolist()),
            std=tuple(np.where(std > 0, std, 1).tolist()),
        )
    if len(given.mean) != len(names):
        raise UserError(
            f"config.targets.mean={given.mean}: expected one for each of "
            f"{', '.join(names)}."
        )
    return dataclasses.replace(config, targets=given)


def answers(config: Finetune, outputs: np.ndarray) -> np.ndarray:
    """Return probabilities or numbers, float32 [n, k], of outputs of the head."""
    if config.loss not in REGRESSION:
        return probabilities_of(outputs, config.loss)
    return (outputs * config.targets.std + config.targets.mean).astype(np.float32)


def absent(source: Source) -> tuple[str, ...]:
    """Return the names of the classes that no image of a source has."""
    targets = targets_of(source)
    assert targets is not None
    has = np.nansum(targets, axis=0) > 0
    return tuple(n for n, some in zip(source.class_names, has, strict=True) if not some)


def evaluation(
    config: Finetune,
    model: Classifier,
    names: tuple[str, ...],
    batches: EvalBatches,
    mesh: jax.sharding.Mesh,
) -> Evaluate:
    """Return (params, step) -> metrics of the held-out images.

    Of several classes "mAP", "f1" (means over classes) and "exact_match", shares; of
    numbers "mae/NAME" and "r2/NAME". "eval_loss" is the mean loss of what is learned.
    """
    normalization = values.normalization(config.data)
    error = losses.HEAD_LOSSES[config.loss]

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh, jax.P()))
    def outputs(params: Any, batch: steps.Batch) -> dict[str, jax.Array]:
        images, target = normalization(batch["image"]), batch["target"]
        with sharding.on_mesh(mesh):
            found = model.apply({"params": sharding.gathered(params, mesh)}, images)
        learned = target
        if config.loss in REGRESSION:
            scale = config.targets
            learned = (target - jnp.array(scale.mean)) / jnp.array(scale.std)
        return {
            "outputs": found,
            "loss": error(found, learned),
            "target": target,
            "weight": batch["weight"],
        }

    def evaluate(params: Any, step: int) -> dict[str, float]:
        del step
        results = results_of_pass(
            lambda batch, _: outputs(params, batch), with_progress(batches), mesh
        )
        found = {
            name: np.concatenate([each[name] for each in results])
            for name in results[0]
        }
        read = found["weight"] > 0
        said, target = answers(config, found["outputs"][read]), found["target"][read]
        metrics = {"eval_loss": float(found["loss"][read].mean())}
        if config.loss in REGRESSION:
            metrics |= target_scores.mean_errors(said, target, names)
        else:
            scores = target_scores.several_scores(said, target, names)
            metrics["mAP"] = target_scores.mean_average_precision(scores)
            metrics["f1"] = target_scores.mean_f1(scores)
            metrics["exact_match"] = target_scores.share(
                target_scores.exact_matches(said, target)
            )[0]
        return metrics | batches.bad.metrics("eval_bad_images")

    return evaluate


def columns_of(names: tuple[str, ...], source: Source, dataset: str) -> np.ndarray:
    """Return the targets of a source in the order of a run's names.

    A class that `dataset` never names is one that no image has.
    raises: UserError for a name that the run does not know.
    """
    targets = targets_of(source)
    assert targets is not None
    number_of = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in source.class_names if name not in number_of]:
        raise UserError(
            f"{dataset!r} has {unknown[0]!r}, which the run does not know: expected "
            f"{', '.join(names)}."
        )
    ordered = np.zeros((len(targets), len(names)), np.float32)
    ordered[:, [number_of[name] for name in source.class_names]] = targets
    return ordered
