"""A fine-tuned classifier with everything that it needs to classify images."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow

from simmim_jax.checkpoints import store
from simmim_jax.config import schema
from simmim_jax.config.schema import Data, Finetune
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.codecs.npy import read_header
from simmim_jax.data.sources.base import NO_LABEL, Source, as_source
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.paths import Paths, is_array, is_image, printable
from simmim_jax.data.sources.registry import is_dataset, open_all
from simmim_jax.data.sources.remote import read_file
from simmim_jax.data.sources.targets import SEPARATOR
from simmim_jax.errors import UserError
from simmim_jax.models import build_classifier, plain
from simmim_jax.models.classifier import Classifier
from simmim_jax.tasks import calibration, examples, precision, targets, values
from simmim_jax.tasks.calibration import Calibration, probabilities_of
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.parts import (
    Rows,
    Split,
    to_csv,
    to_jsonl,
    to_parquet,
    write_table,
)
from simmim_jax.tasks.target_scores import THRESHOLD
from simmim_jax.tasks.views import (
    TEXT,
    check_several,
    content,
    eval_view,
    formats,
    unmasked_view,
)

TOP = 5  # classes shown
TABLES = {".csv": to_csv, ".parquet": to_parquet, ".jsonl": to_jsonl}


class Classified(NamedTuple):
    """Some examples of a source and what the classifier says.

    indices, paths, labels, images, bad: as in `examples.Examples`, labels those of the
    source; logits: float32 [n, classes].
    """

    indices: np.ndarray
    paths: list[str]
    labels: np.ndarray
    images: np.ndarray
    logits: np.ndarray
    bad: list[tuple[int, str, UserError | OSError]]


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A classifier, its parameters, and how its images are prepared.

    calibration: that of `simmim evaluate --calibrate`, or None.
    """

    model: Classifier
    params: Any
    config: Finetune  # of its training run
    class_names: tuple[str, ...]
    step: int
    calibration: Calibration | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Load the workdir of a fine-tuning run (its best checkpoint) or a checkpoint.

        raises: UserError if the run did not train a classifier.
        """
        params, meta = store.load(path)
        class_names = meta.get("class_names")
        if not class_names:
            raise UserError(
                f"'{path}' is a {meta['config']['mode']} run, which learns no classes: "
                "expected the workdir of a run with config.mode='finetune'."
            )
        config = schema.single(schema.parse(meta["config"], stored=True))
        assert isinstance(config, Finetune)
        fitted = calibration.load(path, meta["step"])
        params = jax.tree.map(jnp.asarray, params)  # onto the device, once
        return cls.of(params, config, class_names, meta["step"], fitted)

    @classmethod
    def of(
        cls,
        params: Any,
        config: Finetune,
        class_names: Sequence[str],
        step: int,
        calibration: Calibration | None = None,
    ) -> "Predictor":
        """Return the classifier of a run with these parameters."""
        model = build_classifier(
            num_classes=len(class_names),
            dtype=precision.of_machine(config.dtype),
            **schema.to_dict(config.model),
        )
        # Without what saves memory in training: a few images are classified anywhere.
        return cls(plain(model), params, config, tuple(class_names), step, calibration)

    def __repr__(self) -> str:
        return f"<Predictor: {self.describe()}>"

    def describe(self) -> str:
        """Return architecture and step of the checkpoint in a line."""
        height, width = self.config.data.image_size
        size = sum(np.size(p) for p in jax.tree.leaves(self.params))
        return (
            f"{self.config.model.name}, {size:,} parameters, step {self.step}, images "
            f"of {height}x{width}, {len(self.class_names):,} "
            + ("numbers" if self.has_numbers else "classes")
        )

    def prepare(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        """Return an image as the model sees it: [h w c].

        image: a path, an encoded image or its pixels; with config.data.view="text", a
        line.
        raises: UserError or OSError for what is not an image.
        """
        example = {"image": content(self.config.data, image), "label": NO_LABEL}
        return self.view(example, np.random.default_rng(0))["image"]

    @functools.cached_property
    def view(self) -> Any:
        """The view that prepares an example."""
        return eval_view(self.config.data)

    def apply(self, params: Any, images: jax.Array | np.ndarray) -> jax.Array:
        """Return what `__call__` does, for JAX to trace; images: [n h w c]."""
        logits = self._logits(params, images)
        if self.has_numbers:
            scale = self.config.targets
            return logits * jnp.array(scale.std) + jnp.array(scale.mean)
        function = jax.nn.sigmoid if self.has_several else jax.nn.softmax
        return function(logits)

    def _logits(self, params: Any, images: jax.Array | np.ndarray) -> jax.Array:
        pixels = values.normalization(self.config.data)(images)
        return self.model.apply({"params": params}, pixels)

    @functools.cached_property
    def _jitted(self) -> Callable[[Any, np.ndarray], jax.Array]:
        return jax.jit(self._logits)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32[n classes], probabilities or numbers of images [n h w c].

        images: prepared.
        """
        batch = self._batch_for(len(images))
        logits = [
            self._logits_of(images[i : i + batch], batch)
            for i in range(0, len(images), batch)
        ]
        return self.answers(np.concatenate(logits))

    def _batch_for(self, images: int) -> int:
        """Return the size of all batches: every size is a program to compile."""
        most = examples.batch_size(self.config.data.image_size)
        return min(most, 1 << max(images - 1, 0).bit_length())

    def _logits_of(self, images: np.ndarray, batch: int) -> np.ndarray:
        """Return float32 [n, classes] of at most `batch` images, compiled once."""
        padded = np.zeros((batch, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        return np.asarray(self._jitted(self.params, padded))[: len(images)]

    def probabilities(
        self, logits: np.ndarray, *, calibrated: bool = False
    ) -> np.ndarray:
        """Return float32 [n, classes] of logits; calibrated: by self.calibration."""
        temperature = 1.0
        if calibrated:
            assert self.calibration is not None
            temperature = self.calibration.temperature
        return probabilities_of(logits, self.config.loss, temperature)

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """Return float32 [n, classes] of logits: probabilities, or numbers."""
        return targets.answers(self.config, logits)

    @property
    def has_several(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.config.loss == "sigmoid"

    @property
    def has_numbers(self) -> bool:
        """Whether numbers were learned, rather than classes; class_names names them."""
        return self.config.loss in schema.REGRESSION

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder, for features."""
        return Encoder.of(self.params, self.config, self.step)

    def embed(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return what the head sees of each image, float32 [n, d]: `Encoder.embed`."""
        return self.encoder.embed(images)

    def classify(
        self, source: Source, indices: range | None = None
    ) -> Iterator[Classified]:
        """Yield what the classifier says of a source's examples, a batch at a time.

        indices: None for all of them. No more than two batches are in memory.
        """
        indices = range(len(source)) if indices is None else indices
        batch = self._batch_for(len(source))
        for found in examples.read(source, indices, self.view, batch):
            logits = (
                self._logits_of(found.images, batch)
                if len(found.images)
                else np.zeros((0, len(self.class_names)), np.float32)
            )
            yield Classified(*found[:4], logits, found.bad)

    def above(
        self, logits: np.ndarray, threshold: float
    ) -> list[list[tuple[str, float]]]:
        """Return the classes of each image from `threshold` on, in order."""
        found = self.probabilities(logits)
        order = np.argsort(-found, axis=1, kind="stable")
        return [
            [
                (self.class_names[i], float(row[i]))
                for i in ranked
                if row[i] >= threshold
            ]
            for row, ranked in zip(found, order, strict=True)
        ]

    def top(
        self, probabilities: np.ndarray
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Return names and probabilities of the most probable classes, in order."""
        order = np.argsort(-probabilities, kind="stable")[:, :TOP]
        names = [[self.class_names[i] for i in row] for row in order]
        return names, np.take_along_axis(probabilities, order, axis=1).tolist()

    def predict(
        self, images: list[str | Path | bytes | np.ndarray]
    ) -> list[dict[str, float]]:
        """Return the probability of each class, most probable first, for each image.

        Of a run that learned numbers, each of them.

        images: paths, encoded images or arrays [h w c] of any size; with
        config.data.view="text", lines.
        raises: UserError or OSError for what is not an image.
        """
        check_several(self.config.data, images)
        prepared = [self.prepare(image) for image in images]
        found = [
            dict(zip(self.class_names, map(float, row), strict=True))
            for row in self(np.stack(prepared))
        ]
        if self.has_numbers:
            return found
        return [dict(sorted(row.items(), key=lambda item: -item[1])) for row in found]


# ---- Data sets -----------------------------------------------------------------------


def open_images(
    data: Data,
    names: Sequence[str],
    splits: Sequence[str] = (),
    data_dir: str = "",
) -> list[Split]:
    """Open files of images and data sets, in the order of their names.

    A file is an image where a run on `data` can read it as one: a .tif of several pages
    or a .npy array of several images is a data set. With data.view="text", what is no
    data set is a line. splits: of data sets, (): all.
    raises: UserError for a name that is neither; files that do not exist are bad
    images.
    """
    found = []
    unique = dict.fromkeys(names)  # named twice, classified once
    added = formats(data)
    is_line = data.view == TEXT
    for are_single, group in itertools.groupby(
        unique,
        lambda name: (
            not is_dataset(name, added) if is_line else _is_one_image(data, name)
        ),
    ):
        if not are_single:
            for name in group:
                opened = open_all(name, splits, data_dir=data_dir, formats=added)
                found += [Split(name, key, source) for key, source in opened.items()]
        elif is_line:
            found.append(Split("", "", as_source(list(group))))
        else:
            paths = Paths([os.fsencode(name) for name in group])
            found.append(Split("", "", FolderSource("", paths, None, ())))
    return found


def _is_one_image(data: Data, name: str) -> bool:
    looks_so = is_image(os.fsencode(name))
    if not os.path.isfile(name):
        return looks_so and not os.path.isdir(name)
    if not is_dataset(name):
        return True
    try:
        if is_array(os.fsencode(name)):
            with open(name, "rb") as file:
                return len(read_header(file).shape) < 4
        if looks_so:
            example = {"image": read_file(name), "label": NO_LABEL}
            unmasked_view(data)(example, np.random.default_rng(0))
    except (OSError, BadImage):
        return True
    except UserError:
        return False
    return looks_so


# ---- Tables --------------------------------------------------------------------------


def write_predictions(
    predictor: Predictor,
    splits: Sequence[Split],
    out: str | Path,
    *,
    plan: dict[str, Any],
    top: int = TOP,
    every_class: bool = False,
    threshold: float = THRESHOLD,
) -> tuple[int, int]:
    """Write the most probable classes of each image, or resume writing.

    out: a .csv, .parquet or .jsonl file with the columns path (a line of text, or the
    name of a data set without files), split, index, true_class (where there is a
    label), class and probability, calibrated (of a calibrated run), then class_2,
    probability_2 … of the next ones. top: number of classes; every_class: a column
    "probability of NAME" for each. threshold: of several classes an image, the lowest
    probability of those in a further column, classes. A run that learned numbers
    writes a column "predicted NAME" for each in place of all this.
    returns: numbers of images written and left out; see `write_table`.
    """
    top = min(top, len(predictor.class_names))

    def rows(split: Split, span: range) -> Iterator[Rows]:
        for found in predictor.classify(split.source, span):
            columns = _examples(split, found)
            if predictor.has_numbers:
                columns |= _numbers(predictor, found)
            else:
                columns |= _classes(predictor, split, found, top, every_class)
            if predictor.has_several:
                columns["classes"] = [
                    SEPARATOR.join(name for name, _ in row)
                    for row in predictor.above(found.logits, threshold)
                ]
            yield Rows(pyarrow.table(columns), found.bad)

    fitted = predictor.calibration
    return write_table(
        out,
        splits,
        rows,
        TABLES,
        plan=plan
        | {
            "step": predictor.step,
            "temperature": fitted.temperature if fitted else None,
            "top": top,
            "every_class": every_class,
            "threshold": threshold,
        },
        title="predicting",
    )


def _examples(split: Split, found: Classified) -> dict[str, Any]:
    """Return the columns that say which image a row is of."""
    return {
        "path": pyarrow.array(
            [printable(path or split.dataset) for path in found.paths], "string"
        ),
        "split": pyarrow.array([split.name] * len(found.paths), "string"),
        "index": found.indices,
    }


def _numbers(predictor: Predictor, found: Classified) -> dict[str, Any]:
    answers = predictor.answers(found.logits)
    return {
        f"predicted {name}": answers[:, number]
        for number, name in enumerate(predictor.class_names)
    }


def _classes(
    predictor: Predictor, split: Split, found: Classified, top: int, every_class: bool
) -> dict[str, Any]:
    known = found.labels != NO_LABEL
    true_names = np.array([*split.source.class_names, None], object)
    columns: dict[str, Any] = {
        "true_class": pyarrow.array(
            [true_names[label] for label in np.where(known, found.labels, -1)],
            "string",
        ),
    }
    every = {"probability": predictor.probabilities(found.logits)}
    if predictor.calibration:
        every["calibrated"] = predictor.probabilities(found.logits, calibrated=True)
    order = np.argsort(-found.logits, kind="stable")[:, :top]
    names = np.array(predictor.class_names, object)
    rows = np.arange(len(order))
    for rank in range(top):
        suffix = f"_{rank + 1}" if rank else ""
        chosen = order[:, rank]
        columns[f"class{suffix}"] = pyarrow.array(names[chosen], "string")
        for name, probabilities in every.items():
            columns[f"{name}{suffix}"] = probabilities[rows, chosen]
    if every_class:
        for number, name in enumerate(predictor.class_names):
            columns[f"probability of {name}"] = every["probability"][:, number]
    return columns
