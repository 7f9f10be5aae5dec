"""Fashion-MNIST with few labels: logistic regression, from scratch and SimMIM.

    python -m benchmarks.label_efficiency --data=tfds:fashion_mnist

Pre-trains without labels on the 60,000 training images, once a seed, then fine-tunes
on a few labelled ones, from what was learned and from scratch, and fits a logistic
regression to their pixels (scikit-learn, its regularisation chosen for the test set, in
its favour). All are tested on the 10,000 test images after the last step. Takes hours;
what is done stays in --workdir, and the same command goes on from there.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from simmim_jax.configs import fashion_mnist
from sklearn.linear_model import LogisticRegression

from simmim_jax.data.sources.base import subset
from simmim_jax.monitoring.writer import write_json
from simmim_jax.tasks.classify import finetune
from simmim_jax.tasks.compare import arms
from simmim_jax.tasks.pretrain import pretrain
from simmim_jax.training.inputs import open_split

METHODS = ("logistic regression", "from scratch", "SimMIM")


def logistic_regression(config: ConfigDict) -> float:
    """Test accuracy of the best of five regularisations on the pixels."""
    train = subset(
        open_split(config, config.data.train_split), config.data.num_labels, config.seed
    )
    test = open_split(config, config.data.eval_split)

    def pixels(source) -> tuple[np.ndarray, np.ndarray]:
        images = [np.ravel(source[i]["image"]) for i in range(len(source))]
        return np.stack(images) / 255, source.labels

    x, y = pixels(train)
    return max(
        LogisticRegression(C=c, max_iter=1000).fit(x, y).score(*pixels(test))
        for c in (0.01, 0.1, 1.0, 10.0, 100.0)
    )


def run(seed: int, num_labels: list[int], data: str, workdir: Path) -> dict:
    """Accuracies of one seed: {labels: {method: accuracy}}."""
    config = fashion_mnist.get_config()
    for part in (config.pretrain, config.finetune):
        part.seed = seed
        part.data.dataset = data
    pretrain(config.pretrain, workdir / "pretrain")
    accuracies = {}
    for n in num_labels:
        config.finetune.data.num_labels = n
        fresh, restored = arms(config.finetune, workdir / "pretrain")
        accuracies[n] = {
            "logistic regression": logistic_regression(fresh),
            "from scratch": finetune(fresh, workdir / f"scratch-{n}").last["top1"],
            "SimMIM": finetune(restored, workdir / f"simmim-{n}").last["top1"],
        }
    return accuracies


def table(results: list[dict]) -> str:
    """A Markdown table of mean ± standard deviation over seeds, in percent."""
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
    """Prints the table and writes <workdir>/label_efficiency.json."""
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
