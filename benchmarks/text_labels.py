"""Language of a line, few labels: n-grams, from scratch and SimMIM, in one table.

    python -m benchmarks.text_labels

For each seed, pre-trains without labels on all training lines of bundled:languages,
fine-tunes on 5, 20 and all lines a language with and without pre-training, and fits a
logistic regression to the character n-grams (1 to 3) of the same lines (scikit-learn;
its regularisation is chosen on the test lines, in its favour). It is given the
characters, which the other two have to learn to read. All are tested on the lines of
other articles after the last step. Finished runs stay in --workdir, and the same
command resumes.
"""

import argparse
import json
import statistics
from pathlib import Path

from absl import logging
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from simmim_jax.config import schema
from simmim_jax.configs import text_languages
from simmim_jax.data.sources.base import Source, subset
from simmim_jax.monitoring.writer import write_json
from simmim_jax.tasks.api import finetune, pretrain
from simmim_jax.tasks.compare import arms
from simmim_jax.tasks.inputs import open_split

METHODS = ("n-grams, logistic regression", "from scratch", "SimMIM")
LANGUAGES = 20


def logistic_regression(config: schema.Finetune) -> float:
    """Return the test accuracy of the best of five regularisations on the n-grams."""
    train = open_split(config.data, config.data.train_split)
    if config.data.num_labels:
        train = subset(train, config.data.num_labels, config.seed)
    test = open_split(config.data, config.data.eval_split)

    def lines(source: Source) -> list[str]:
        return [source[i]["image"] for i in range(len(source))]

    def accuracy(c: float) -> float:
        model = make_pipeline(
            TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False),
            LogisticRegression(C=c, max_iter=1000),
        )
        return model.fit(lines(train), train.labels).score(lines(test), test.labels)

    return max(map(accuracy, (0.1, 1.0, 10.0, 100.0, 1000.0)))


def run(seed: int, counts: list[int], workdir: Path) -> dict[str, dict[str, float]]:
    """Return the accuracies of one seed: {lines a language: {method: accuracy}}."""
    config = text_languages.get_config()
    config.pretrain.seed = config.finetune.seed = seed
    pretrain(config.pretrain, workdir / "pretrain")
    accuracies = {}
    for count in counts:
        config.finetune.data.num_labels = LANGUAGES * count
        typed = schema.parse(config.finetune)
        assert isinstance(typed, schema.Finetune)
        fresh, restored = arms(typed, workdir / "pretrain")
        values = (
            logistic_regression(fresh),
            finetune(fresh, workdir / f"scratch-{count}").last["top1"],
            finetune(restored, workdir / f"simmim-{count}").last["top1"],
        )
        name = f"{count} lines" if count else "all lines"
        accuracies[name] = dict(zip(METHODS, values, strict=True))
    return accuracies


def table(results: list[dict[str, dict[str, float]]]) -> str:
    """Return a Markdown table of means [%], over several seeds ± standard deviation."""
    lines = [
        "| per language | " + " | ".join(METHODS) + " |",
        "|---" * (1 + len(METHODS)) + "|",
    ]
    for name in results[0]:
        cells = []
        for method in METHODS:
            values = [100 * result[name][method] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write <workdir>/text_labels.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/text_labels"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--lines", type=int, nargs="+", default=[5, 20, 0], help="a language; 0: all"
    )
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    workdir = args.workdir.absolute()
    results = [
        run(seed, args.lines, workdir / f"seed-{seed}") for seed in range(args.seeds)
    ]
    write_json(workdir / "text_labels.json", results)
    print(json.dumps(results) if args.json else table(results))


if __name__ == "__main__":
    main()
