"""Cost of a layer by the TPU compiler's estimates: ours, a textbook's, older revisions.

    python -m benchmarks.tpu_compiler
    python -m benchmarks.tpu_compiler --variant=swin_base --revision=e0607c8

Compiles the whole training step with AdamW in bfloat16 for a host with four chips of
v5e, at two depths of the model; the difference is the cost of the added layers. Needs
no TPU, but libtpu: pip install 'simmim_jax[tpu]'. Prints a layer's estimated cycles
[millions], bundles of Pallas kernels, which have no estimate, and their sum; cycles of
copies; bytes of reshapes, which have no estimate either [MB]; and cycles an image of
the whole model, extrapolated from the shallower one.

A Swin's layers are those of its third stage, where most of them are. Differences below
5 % mean nothing. Each compilation takes one to four minutes on two cores. A revision
is compiled by its own benchmarks/tpu_program.py.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from simmim_jax.configs import common
from simmim_jax.performance import hlo, kernels, slices, step_cost
from simmim_jax.runtime.accelerators import CHIPS, TPUS

ROOT = Path(__file__).parents[1]
PROGRAM = "benchmarks/tpu_program.py"


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check out a revision in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", "--quiet", folder, revision], check=True
        )
        root = Path(folder)
        try:
            if (root / "configs" / "__init__.py").exists():
                # Where the installed package has them.
                (root / "simmim_jax" / "configs").symlink_to(root / "configs")
            yield root
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def compile_step(root: Path, options: list[str], keep: Path | None, name: str):
    """Return the cost of the step of the package in `root`."""
    with tempfile.TemporaryDirectory() as folder:
        slices.set_environment()

        def run(out: Path, *more: str) -> str:
            command = [sys.executable, "-W", "ignore", root / PROGRAM, *options, *more]
            subprocess.run(
                [*command, f"--out={out}"],
                env=os.environ | {"PYTHONPATH": str(root)},
                check=True,
            )
            return out.read_text()

        begin = time.perf_counter()
        text = run((keep or Path(folder)) / f"{name}.hlo")
        issued = {}
        if hlo.PALLAS in text:
            issued = {
                (kernel, tuple(types)): bundles
                for (kernel, types), bundles in json.loads(
                    run(Path(folder) / "kernels.json", "--kernels")
                )
            }
        seconds = time.perf_counter() - begin
        print(f"{name}: compiled in {seconds:.0f} s", file=sys.stderr, flush=True)
        cost = step_cost.cost(
            hlo.parse(text), lambda call: issued.get(kernels.key(call))
        )
        for operation in cost.unknown:
            if operation.kind == hlo.PALLAS:
                raise LookupError(f"{operation.name} has no estimate")
        return cost


def compare(few: step_cost.Cost, many: step_cost.Cost, more: int, missing: int) -> dict:
    """Return costs of a layer from two models, of which one has `more` layers."""

    def layer(name: str) -> float:
        return (getattr(many, name) - getattr(few, name)) / more

    copies = [
        sum(o.cycles for o in cost.operations if o.kind == "copy")
        for cost in (few, many)
    ]
    reshaped = [
        sum(o.bytes for o in cost.unknown if o.kind == "reshape")
        for cost in (few, many)
    ]
    return {
        "estimated_cycles_per_layer": layer("estimated_cycles"),
        "kernel_bundles_per_layer": layer("kernel_bundles"),
        "cycles_per_layer": layer("cycles"),
        "copy_cycles_per_layer": (copies[1] - copies[0]) / more,
        "memory_bytes_per_layer": layer("hbm_bytes"),
        "reshaped_bytes_per_layer": (reshaped[1] - reshaped[0]) / more,
        "cycles": few.cycles + missing * layer("cycles"),
    }


def flops_per_layer(variant: str, batch: int) -> float:
    """Return matrix-product FLOP of a layer on a chip, forward and backward."""
    config = common.pretrain(variant)
    if variant.startswith("vit"):
        width = config.model.embed_dim
        side = config.data.image_size[0] // config.model.patch_size[0]
        tokens = keys = side**2 + 1
    else:
        width = 4 * config.model.embed_dim
        tokens, keys = (192 // 16) ** 2, 36
    forward = 2 * tokens * (12 * width**2 + 2 * keys * width)
    return 3 * forward * batch


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="vit_base", help="of configs/models.py")
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--layers", type=int, nargs=2, default=(2, 4))
    parser.add_argument(
        "--ours",
        action="append",
        help="fields of the model, such as 'attention=pallas'; may be repeated; '' for "
        "the default",
    )
    parser.add_argument(
        "--revision", action="append", default=[], help="older revision"
    )
    parser.add_argument("--no-textbook", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder to keep programs in")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    model = common.pretrain(args.variant).model
    depth = model.depth if "depth" in model else model.depths[2]
    few, many = args.layers
    results = {}

    def measure(name: str, root: Path, *options: str) -> None:
        fixed = [f"--variant={args.variant}", f"--batch={args.batch}", *options]
        try:
            costs = [
                compile_step(
                    root,
                    [*fixed, f"--layers={layers}"],
                    args.keep,
                    f"{name} {layers}".replace(" ", "-").replace("/", "-"),
                )
                for layers in (few, many)
            ]
        except (subprocess.CalledProcessError, LookupError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            return
        results[name] = compare(*costs, many - few, depth - few)

    for fields in args.ours or [""]:
        set_fields = ["--set", *fields.split()] if fields else []
        measure(f"ours {fields}".strip(), ROOT, *set_fields)
    if not args.no_textbook:
        measure("textbook", ROOT, "--textbook")
    for revision in args.revision:
        with checkout(revision) as root:
            measure(f"revision {revision}", root)

    minimum = (
        flops_per_layer(args.variant, args.batch) * CHIPS["v5e"].clock / TPUS["v5e"]
    )
    print(
        f"\n{args.variant}, {args.batch} images a chip of v5e, bfloat16: M cycles a "
        f"layer (matrix products at the peak rate: {minimum / 1e6:.2f})\n\n"
        f"{'':<28}{'estimate':>9}{'kernels':>9}{'sum':>8}{'of peak':>9}{'copies':>8}"
        f"{'reshaped MB':>13}{'cycles/image':>14}"
    )
    for name, r in results.items():
        r["share_of_peak"] = minimum / r["cycles_per_layer"]
        r["cycles_per_image"] = r["cycles"] / args.batch
        print(
            f"{name:<28}{r['estimated_cycles_per_layer'] / 1e6:>9.2f}"
            f"{r['kernel_bundles_per_layer'] / 1e6:>9.2f}"
            f"{r['cycles_per_layer'] / 1e6:>8.2f}{r['share_of_peak']:>9.0%}"
            f"{r['copy_cycles_per_layer'] / 1e6:>8.2f}"
            f"{r['reshaped_bytes_per_layer'] / 1e6:>13.0f}"
            f"{r['cycles_per_image']:>14,.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
