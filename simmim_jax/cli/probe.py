"""Measure what the features of an encoder are worth, without training it.

    simmim probe runs/mine /my/labelled
    simmim probe runs/mine bundled:fashion_mnist_10k --block=8

Classifies the held-out split by the nearest neighbours among the training images
(DINO's protocol), and by a linear classifier of the same frozen features (MAE's). Both
take seconds once the images are embedded, and need labels: class folders, or a list
with a column label.
"""

from collections.abc import Sequence

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms


def main(argv: Sequence[str] | None = None) -> None:
    """Print two accuracies with their intervals."""
    parser = arguments.parser("probe", __doc__)
    parser.add_argument("run", help="workdir of a run, or a checkpoint")
    parser.add_argument("dataset", help="labelled images")
    parser.add_argument("--train_split", default="train", help="(%(default)s)")
    parser.add_argument("--eval_split", default="validation", help="(%(default)s)")
    arguments.add_features(parser)
    parser.add_argument("--k", type=int, default=20, help="neighbours (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.07, help="of votes (%(default)s)"
    )
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.tasks import probe
    from simmim_jax.tasks.embed import vectors_of
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.views import formats

    with arguments.explained():
        encoder = Encoder.load(args.run, pool=args.pool, block=args.block)
        print(f"{args.run}: {encoder.describe()}")
        found: list[np.ndarray] = []
        for split in (args.train_split, args.eval_split):
            source = open_source(
                args.dataset,
                split,
                data_dir=args.data_dir,
                formats=formats(encoder.config.data),
            )
            if source.labels is None:
                why = getattr(source, "unlabelled", "")
                raise UserError(
                    f"{args.dataset!r} has no labels in its split {split!r}: expected "
                    f"class folders, or a list with a column label. {why}".rstrip()
                )
            found += vectors_of(encoder, source, f"embedding {split}")
        if args.k < 1 or args.temperature <= 0:
            raise UserError(
                f"--k={args.k} --temperature={args.temperature}: expected k of 1 or "
                "more and a temperature above 0."
            )
        rows = {
            f"{args.k} nearest neighbours": probe.knn_accuracy(
                *found, k=args.k, temperature=args.temperature, step=encoder.step
            ),
            "linear classifier": probe.linear_accuracy(*found, step=encoder.step),
        }
    train, _, _, expected = found
    chance = np.bincount(expected).max() / len(expected)
    for name, accuracy in rows.items():
        low, high = accuracy.interval
        print(
            f"{name}: {accuracy.top1:.2%} of {accuracy.images:,} images right, 95 % "
            f"interval {low:.1%} to {high:.1%}"
        )
    print(
        f"learned from {len(train):,} images; the most frequent class would be right "
        f"for {chance:.2%}"
    )
    print(f"effective rank of the features: {probe.effective_rank(train):.1f}")
