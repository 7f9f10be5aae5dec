"""Fashion-MNIST with few labels: logistic regression, from scratch and SimMIM.

    python -m benchmarks.label_efficiency --data=tfds:fashion_mnist

For each seed, pre-trains without labels on the 60,000 training images, fine-tunes on a
few labelled ones with and without pre-training, and fits a logistic regression to their
pixels (scikit-learn; its regularisation is chosen on the test set, in its favour). All
are tested on the 10,000 test images after the last step. Takes hours; finished runs
stay in --workdir, and the same command resumes.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from absl import logging
from sklearn.linear_model import LogisticRegression

from simmim_jax.config import schema
from simmim_jax.configs import fashion_mnist
from simmim_jax.data.sources.base import subset
from simmim_jax.monitoring.writer import write_json
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.compare import arms
from simmim_jax.tasks.inputs import open_split

METHODS = ("logistic regression", "from scratch", "SimMIM")


def logistic_regression(config: schema.Finetune) -> float:
    """Return the test accuracy of the best of five regularisations on the pixels."""
    data = config.data
    train = subset(open_split(data, data.train_split), data.num_labels, config.seed)
    test = open_split(data, data.eval_split)

    def pixels(source) -> tuple[np.ndarray, np.ndarray]:
        images = [np.ravel(source[i]["image"]) for i in range(len(source))]
        return np.stack(images) / 255, source.labels

    x, y = pixels(train)
    return max(
        LogisticRegression(C=c, max_iter=1000).fit(x, y).score(*pixels(test))
        for c in (0.01, 0.1, 1.0, 10.0, 100.0)
    )


def run(seed: int, num_labels: list[int], data: str, workdir: Path) -> dict:
    """Return the accuracies of one seed: {labels: {method: accuracy}}."""
    config = fashion_mnist.get_config()
    for part in (config.pretrain, config.finetune):
        part.seed = seed
        part.data.dataset = data
    pretrain(config.pretrain, workdir / "pretrain")
    accuracies = {}
    for n in num_labels:
        config.finetune.data.num_labels = n
        typed = schema.parse(config.finetune)
        assert isinstance(typed, schema.Finetune)
        fresh, restored = arms(typed, workdir / "pretrain")
        accuracies[n] = {
            "logistic regression": logistic_regression(fresh),
            "from scratch": finetune(fresh, workdir / f"scratch-{n}").last["top1"],
            "SimMIM": finetune(restored, workdir / f"simmim-{n}").last["top1"],
        }
    return accuracies


def table(results: list[dict]) -> str:
    """Return a Markdown table of mean ± standard deviation over seeds [%]."""
    labels = list(results[0])
    lines = [
        "| labels | " + " | ".join(METHODS) + " |",
        "|---" * (1 + len(METHODS)) + "|",
    ]
    for n in labels:
        cells = []
        for method in METHODS:
            values = [100 * result[n][method] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write <workdir>/label_efficiency.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="tfds:fashion_mnist", help="as config.data")
    parser.add_argument("--workdir", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 600, 6000])
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    workdir = args.workdir.absolute()
    results = [
        run(seed, args.labels, args.data, workdir / f"seed-{seed}")
        for seed in range(args.seeds)
    ]
    write_json(workdir / "label_efficiency.json", results)
    print(json.dumps(results) if args.json else table(results))


if __name__ == "__main__":
    main()
