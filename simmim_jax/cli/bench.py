"""Measure the training step of a config, or its input.

    simmim bench --config=vit_base
    simmim bench --input --config=vit_base --config.data.dataset=/data/photos

The step runs on synthetic images: no data set is needed. Both change nothing and write
their figures to the workdir, as bench.json and bench_input.json.
"""

from collections.abc import Sequence

from simmim_jax.cli import arguments, train


def main(argv: Sequence[str] | None = None) -> None:
    """Run `simmim train` with config.mode=bench or bench_input."""
    train.end_at_ctrl_c()
    parser = arguments.parser("bench", __doc__)
    parser.add_argument(
        "--input", action="store_true", help="measure the input, not the step"
    )
    train.add_arguments(parser, "vit_base")
    args, config, explicit = arguments.parse(parser, argv)
    config.mode = "bench_input" if args.input else "bench"
    train.start(args, config, explicit)
