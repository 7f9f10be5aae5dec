"""Cost of augmentation on a TPU, by the compiler's estimate. Nothing runs.

    python -m benchmarks.augment_tpu

Compiles the official fine-tuning of ViT-B/16 for a slice (needs libtpu) and prints
cycles of a chip: RandAugment on average over the operations that it draws, each as
often as it is drawn, and if it always drew the costliest, as `simmim aot` counts.
"""

import argparse
import statistics

from simmim_jax.performance import slices

CLASSES = 1000
# Of `randaugment.apply_one_by_one`, in its order.
BRANCHES = ("table", "blend", "warp", "none")


def estimate(topology: str, batch: int) -> dict[str, float]:
    """Return cycles of a chip and shares of a step; batch: images a chip."""
    slices.set_environment()  # before JAX starts

    from simmim_jax.augment import randaugment
    from simmim_jax.config import schema
    from simmim_jax.configs import vit_base_finetune
    from simmim_jax.performance import hlo, step_cost
    from simmim_jax.runtime import sharding
    from simmim_jax.runtime.accelerators import accelerator
    from simmim_jax.tasks import learners
    from simmim_jax.training import compilation

    of = accelerator(topology)
    config = vit_base_finetune.get_config()
    config.data.batch_size = batch * of.chips
    config.dtype = "bfloat16"
    mesh = sharding.make_mesh(devices=slices.devices(of))
    learner = learners.learner(schema.parse(config), num_classes=CLASSES)
    text = compilation.plan(learner, mesh).lower().compile().as_text()
    program = hlo.parse(text)
    cost = step_cost.cost(program, lambda kernel: None)

    ((branches, times),) = (
        (hlo.branches(instruction), times)
        for instruction, _, times in program.executed()
        if instruction.opcode == "conditional"
        and len(hlo.branches(instruction)) == len(BRANCHES)
    )
    cycles = dict(zip(BRANCHES, map(program.cycles, branches), strict=True))
    drawn = statistics.mean(cycles[kind] for kind in randaugment.KINDS.values())
    p = randaugment.PROBABILITY
    mean = p * drawn + (1 - p) * cycles["none"]
    average = cost.preparation - times * (max(cycles.values()) - mean)
    rest = cost.cycles - cost.preparation
    return {
        "M cycles, a step without augmentation": rest / 1e6,
        "M cycles, augmentation on average": average / 1e6,
        "M cycles, augmentation at most": cost.preparation / 1e6,
        "% of such a step, augmentation on average": 100 * average / rest,
        "% of such a step, augmentation at most": 100 * cost.preparation / rest,
        **{f"k cycles, {name}, an image": n / 1e3 for name, n in cycles.items()},
    }


def main() -> None:
    """Print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e-4")
    parser.add_argument("--batch-size", type=int, default=128, help="images a chip")
    args = parser.parse_args()
    print(f"{args.topology}, {args.batch_size} images a chip, estimated")
    for name, value in estimate(args.topology, args.batch_size).items():
        print(f"{value:9.2f}  {name}")


if __name__ == "__main__":
    main()
