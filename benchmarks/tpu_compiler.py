"""What the TPU compiler says a step costs: ours, in cycles a layer.

python -m benchmarks.tpu_compiler --layers=2,4
"""

import argparse
import tempfile
import time
from pathlib import Path

from simmim_jax import slices

DUMP = Path(tempfile.mkdtemp(prefix="schedules-"))
slices.set_environment(DUMP)


from configs import common  # noqa: E402
from simmim_jax import compilation, hlo, pretrain, schedule, sharding  # noqa: E402
from simmim_jax.accelerators import accelerator  # noqa: E402

IMAGENET = 1281167


def compiled_text(variant: str, layers: int, batch: int, changes: dict) -> str:
    """The optimised program of a pre-training step, `batch` images a chip of v5e-4."""
    config = common.pretrain(variant, **changes)
    if variant.startswith("vit"):
        config.model.depth = layers
    else:
        config.model.depths = (2, 2, layers, 2)
        config.model.window_size = 6
        config.data.image_size = (192, 192)
    config.data.batch_size = 4 * batch
    mesh = sharding.make_mesh(devices=slices.devices(accelerator("v5e-4")))
    learner = pretrain.learner(config, IMAGENET)
    begin = time.perf_counter()
    lowered = compilation.plan(config, learner, mesh).lower()
    text = lowered.compile().as_text()
    print(
        f"{layers} layers: compiled in {time.perf_counter() - begin:.0f} s", flush=True
    )
    return text


def cost(text: str) -> tuple[int, int, dict[str, tuple[int, int]]]:
    """Estimated cycles, bundles of kernels, and what has neither: times and bytes."""
    program = hlo.parse(text)
    kernels, rest = 0, {}
    for instruction, _, times in program.executed():
        if instruction.cycles is not None or instruction.is_free:
            continue
        if instruction.kind == "tpu_custom_call":
            dumped = schedule.dumped(DUMP, instruction.name)
            assert dumped, f"no schedule of {instruction.name} in {DUMP}"
            kernels += times * schedule.bundles(dumped)
        else:
            n, size = rest.get(instruction.kind, (0, 0))
            moved = sum(a.bytes for a in instruction.arrays)
            rest[instruction.kind] = (n + times, size + times * moved)
    return program.cycles(), kernels, rest


def main() -> None:
    """Prints cycles of models of two depths, and of a layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_base")
    parser.add_argument("--layers", default="2,4", help="two depths")
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--save", type=Path, help="folder for the programs' texts")
    parser.add_argument("--set", nargs="*", default=[], help="fields of the model")
    args = parser.parse_args()
    changes = dict(field.split("=") for field in args.set)
    results = []
    depths = [int(n) for n in args.layers.split(",")]
    for depth in depths:
        text = compiled_text(args.variant, depth, args.batch, changes)
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / f"{args.variant}-{depth}.hlo").write_text(text)
        cycles, kernels, rest = cost(text)
        results.append((cycles, kernels))
        print(
            f"  {cycles / 1e6:.2f} M cycles, {kernels / 1e6:.2f} M bundles of kernels"
        )
        for kind, (n, size) in sorted(rest.items(), key=lambda item: -item[1][1]):
            if size > 1e6:
                print(f"    no estimate: {kind} x {n}, {size / 1e6:.0f} MB")
    if len(depths) == 2:
        layers = depths[1] - depths[0]
        cycles, kernels = (
            (b - a) / layers / 1e6 for a, b in zip(*results, strict=True)
        )
        print(f"a layer: {cycles:.2f} M cycles + {kernels:.2f} M bundles of kernels")


if __name__ == "__main__":
    main()
