"""How good a classifier is: by class, what it confuses, and how sure it may be."""

import csv
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.data.sources.base import NO_LABEL, Source
from simmim_jax.errors import UserError
from simmim_jax.monitoring import charts
from simmim_jax.monitoring.progress import make_progress, say
from simmim_jax.monitoring.writer import write_json
from simmim_jax.tasks import target_scores, targets
from simmim_jax.tasks.accuracy import Accuracy
from simmim_jax.tasks.calibration import Calibration, reliability
from simmim_jax.tasks.parts import Split
from simmim_jax.tasks.predict import Classified, Predictor


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """Shares in 0..1 of one class; None where they are of no image.

    images: that are of it; predicted: that are said to be; recall: its accuracy, with
    the 95 % interval of Wilson; f1: harmonic mean of precision and recall.
    """

    name: str
    images: int
    predicted: int
    precision: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a classifier says of labelled images.

    logits: float32 [n, classes]; labels: int [n]; left_out: number of bad images.
    """

    predictor: Predictor
    logits: np.ndarray
    labels: np.ndarray
    left_out: int

    @property
    def confusion(self) -> np.ndarray:
        """int64 [classes, classes]: images by true class (rows) and predicted one."""
        return confusion_matrix(
            self.labels, self.logits.argmax(axis=1), len(self.predictor.class_names)
        )

    @property
    def accuracy(self) -> Accuracy:
        """Top-1 accuracy with its interval."""
        top1 = float((self.logits.argmax(axis=1) == self.labels).mean())
        return Accuracy(self.predictor.step, top1, len(self.labels))

    @property
    def classes(self) -> list[ClassScore]:
        """Scores by class, in the order of the classifier's."""
        return class_scores(self.confusion, self.predictor.class_names)

    def write(self, folder: Path, fitted: Calibration | None) -> dict[str, Any]:
        """Write evaluation.json, two tables and two pictures; return the first one.

        fitted: a calibration to compare with, or None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names, matrix = self.predictor.class_names, self.confusion
        raw = reliability(self.predictor.probabilities(self.logits), self.labels)
        curves = {f"as predicted: error {raw.error:.1%}": raw[1:]}
        if fitted:
            calibrated = dataclasses.replace(self.predictor, calibration=fitted)
            curve = reliability(
                calibrated.probabilities(self.logits, calibrated=True), self.labels
            )
            name = f"temperature {fitted.temperature:.3g}: error {curve.error:.1%}"
            curves[name] = curve[1:]
        summary: dict[str, Any] = {
            **self.accuracy.to_dict(),
            "macro_f1": macro_f1(self.classes),
            "left_out": self.left_out,
            "calibration_error": raw.error,
            "calibration": dataclasses.asdict(fitted) if fitted else None,
            "classes": [dataclasses.asdict(score) for score in self.classes],
        }
        write_json(folder / "evaluation.json", summary)
        fields = [field.name for field in dataclasses.fields(ClassScore)]
        scores = [dataclasses.astuple(score) for score in self.classes]
        _write_csv(folder / "classes.csv", [fields, *scores])
        rows = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
        _write_csv(folder / "confusion.csv", [["true class", *names], *rows])
        charts.confusion(matrix, names, folder / "confusion.png")
        charts.reliability(curves, folder / "calibration.png")
        return summary


@dataclasses.dataclass(frozen=True)
class TargetEvaluation:
    """What a run says of images with several classes, or with numbers.

    answers, targets: float32 [n, k], probabilities or numbers, and 1 and 0 or numbers,
    NaN where they are not known; left_out: number of bad images.
    """

    predictor: Predictor
    answers: np.ndarray
    targets: np.ndarray
    left_out: int

    @functools.cached_property
    def scores(self) -> list[Any]:
        """A `SeveralScore` for each class, or a `NumberScore` for each number."""
        of = (
            target_scores.number_scores
            if self.predictor.has_numbers
            else target_scores.several_scores
        )
        return of(self.answers, self.targets, self.predictor.class_names)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write evaluation.json and a table; return the first one."""
        folder.mkdir(parents=True, exist_ok=True)
        summary: dict[str, Any] = {
            "step": self.predictor.step,
            "images": len(self.targets),
            "left_out": self.left_out,
        }
        name = "numbers"
        if not self.predictor.has_numbers:
            name = "classes"
            exact, interval = target_scores.share(
                target_scores.exact_matches(self.answers, self.targets)
            )
            summary |= {
                "mAP": target_scores.mean_average_precision(self.scores),
                "f1": target_scores.mean_f1(self.scores),
                "exact_match": exact,
                "exact_match_interval": interval,
            }
        rows = [dataclasses.asdict(score) for score in self.scores]
        summary[name] = rows
        write_json(folder / "evaluation.json", summary)
        fields = [*rows[0]]
        _write_csv(folder / f"{name}.csv", [fields, *(row.values() for row in rows)])
        return summary


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Classify the labelled examples of a split, with progress.

    Classes are found by name. Examples without a label are left out, with a message.
    raises: UserError without labels, or for a class that the classifier does not know.
    """
    source = split.source
    if not source.class_names:
        why = getattr(source, "unlabelled", "")
        raise UserError(
            f"{split.dataset!r} has no labels in its split {split.name!r}: expected "
            f"class folders, or a list with a column label. {why}".rstrip()
        )
    numbers = _numbers(predictor, split)
    said, left_out = _classified(predictor, source)
    given = np.concatenate([found.labels for found in said])
    known = given != NO_LABEL
    _say_unlabelled(known)
    logits = np.concatenate([found.logits for found in said])
    return Evaluation(predictor, logits[known], numbers[given[known]], left_out)


def evaluate_targets(predictor: Predictor, split: Split) -> TargetEvaluation:
    """Compare answers with the targets of a split, with progress; as `evaluate`.

    raises: UserError for a split without targets, or with others than the run learned.
    """
    targets.check(predictor.config, split.source, split.name)
    given = targets.columns_of(predictor.class_names, split.source, split.dataset)
    said, left_out = _classified(predictor, split.source)
    given = given[np.concatenate([found.indices for found in said])]
    known = ~np.isnan(given).all(1)
    _say_unlabelled(known)
    logits = np.concatenate([found.logits for found in said])
    answers = predictor.answers(logits[known])
    return TargetEvaluation(predictor, answers, given[known], left_out)


def _classified(predictor: Predictor, source: Source) -> tuple[list[Classified], int]:
    """Return what is said of a source, without its images, and the number of bad ones.

    raises: UserError where all are bad.
    """
    progress = make_progress(len(source), title="evaluating")
    said, bad, done = [], [], 0
    for found in predictor.classify(source):
        said.append(found._replace(images=found.images[:0]))
        bad += found.bad
        done += len(found.indices) + len(found.bad)
        progress.show(done, {})
    progress.close()
    if len(bad) == len(source):
        raise UserError(f"none of {len(bad):,} images can be read: {bad[0][2]}")
    return said, len(bad)


def _say_unlabelled(known: np.ndarray) -> None:
    if unlabelled := int((~known).sum()):
        say(f"{unlabelled:,} images have no label and are left out")


def _numbers(predictor: Predictor, split: Split) -> np.ndarray:
    """Return the classifier's label of each class of a source, int [classes]."""
    numbers = {name: number for number, name in enumerate(predictor.class_names)}
    names = split.source.class_names
    if unknown := [name for name in names if name not in numbers]:
        raise UserError(
            f"{split.dataset!r} has the class {unknown[0]!r}, which the classifier "
            f"does not know: expected some of {', '.join(numbers)}. Rename it."
        )
    return np.array([numbers[name] for name in names])


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Return int64 [classes, classes]: images by label (rows) and prediction.

    labels, predicted: int [n].
    """
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def class_scores(confusion: np.ndarray, names: tuple[str, ...]) -> list[ClassScore]:
    """Return precision, recall and F1 of each class of a confusion matrix."""
    right = confusion.diagonal().tolist()
    images, predicted = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    scores = []
    for name, hits, of_it, said in zip(names, right, images, predicted, strict=True):
        recall = hits / of_it if of_it else None
        low, high = (
            (None, None) if recall is None else Accuracy(0, recall, of_it).interval
        )
        scores.append(
            ClassScore(
                name,
                images=of_it,
                predicted=said,
                precision=hits / said if said else None,
                recall=recall,
                recall_low=low,
                recall_high=high,
                f1=2 * hits / (of_it + said) if of_it + said else None,
            )
        )
    return scores


def macro_f1(scores: list[ClassScore]) -> float:
    """Return the mean F1 of the classes that have images."""
    return float(np.mean([score.f1 for score in scores if score.images]))


def confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, images) of the most frequent mistakes."""
    mistakes = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
    found = [(int(i), int(j), int(mistakes[i, j])) for i, j in pairs]
    return [each for each in found if each[2]]


def _write_csv(file: Path, rows: list[Any]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
