"""Write a trained model to a file that runs without this package.

    simmim export runs/mine encoder.onnx
    simmim export runs/mine_classes classifier.stablehlo

The ending says the format: .onnx, .stablehlo (for CPUs, CUDA and TPUs through
jax.export) or .safetensors (parameters by name). Images go in as they are cropped, in
batches of any size; normalisation is inside. A classifier returns probabilities, other
runs vectors. Each file is read back and compared with our results.
"""

from collections.abc import Sequence

from simmim_jax.cli import arguments
from simmim_jax.runtime import platforms


def main(argv: Sequence[str] | None = None) -> None:
    """Export a run."""
    parser = arguments.parser("export", __doc__)
    parser.add_argument("run", help="workdir of a run, or a checkpoint")
    parser.add_argument("out", help="file to write")
    parser.add_argument(
        "--format", default="", help="in place of what the ending of OUT says"
    )
    parser.add_argument(
        "--embed", action="store_true", help="of any run: vectors of its encoder"
    )
    arguments.add_features(parser)
    args = parser.parse_args(argv)
    platforms.leave_out_absent_tpu()
    from simmim_jax.tasks.api import load
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.export import export

    with arguments.explained():
        is_encoder = args.embed or args.block is not None or args.pool != "mean"
        model = (
            Encoder.load(args.run, pool=args.pool, block=args.block)
            if is_encoder
            else load(args.run)
        )
        print(f"{args.run}: {model.describe()}")
        print(export(model, args.out, args.format))
