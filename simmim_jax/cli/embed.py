"""Write a vector of features for every image of a data set.

    simmim embed runs/mine /my/images vectors.parquet
    simmim embed runs/mine photos.csv vectors.npy --split=train --pool=cls

RUN is the workdir of a pre-trained or fine-tuned run, or a converted checkpoint.
DATASET is any value of config.data.dataset. A .parquet file has the columns path,
split, index, label, class and vector; beside a .npy file [n, d] stands a .txt of paths.
An interrupted command resumes when it is run again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from simmim_jax.cli import arguments
from simmim_jax.runtime import platforms


def main(argv: Sequence[str] | None = None) -> None:
    """Embed a data set."""
    parser = arguments.parser("embed", __doc__)
    parser.add_argument("run", help="workdir of a run, or a checkpoint")
    parser.add_argument("dataset", help="what to embed")
    parser.add_argument("out", help="file to write, .parquet or .npy")
    parser.add_argument(
        "--split", action="append", help="splits, repeatable (all that there are)"
    )
    arguments.add_features(parser)
    parser.add_argument(
        "--float16", action="store_true", help="store vectors in half the space"
    )
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.data.sources.registry import open_splits
    from simmim_jax.tasks.embed import embed
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.views import formats

    with arguments.explained(arguments.RESUMES):
        encoder = Encoder.load(args.run, pool=args.pool, block=args.block)
        sources = open_splits(
            args.dataset,
            args.split or (),
            data_dir=args.data_dir,
            formats=formats(encoder.config.data),
        )
        print(f"{args.run}: {encoder.describe()}")
        plan = {
            "run": args.run,
            "step": encoder.step,
            "dataset": args.dataset,
            "pool": args.pool,
            "block": args.block,
        }
        rows, left_out = embed(encoder, sources, args.out, plan=plan, half=args.float16)
    if left_out and not rows:
        out = Path(args.out)
        out.unlink()
        if out.suffix == ".npy":
            out.with_suffix(".txt").unlink()
        sys.exit(
            f"none of {left_out:,} images can be embedded: {out}.left_out.tsv has the "
            "reasons. Expected images like those that the run has learned from."
        )
    print(f"{args.out}: {rows:,} vectors of {encoder.dim}")
    if left_out:
        print(f"{left_out:,} images left out, see {args.out}.left_out.tsv")
