"""Compile a pre-training step for four chips of v5e, and write the program's text.

    python benchmarks/tpu_program.py --variant=vit_base --layers=2 --out=program.hlo

`benchmarks.tpu_compiler` runs it, in the environment that libtpu needs.
"""

import argparse
import ast
import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.models.simmim import SimMIM
from simmim_jax.performance import kernels, schedule, slices
from simmim_jax.runtime import sharding
from simmim_jax.runtime.accelerators import accelerator
from simmim_jax.tasks import learners, pretrain, values
from simmim_jax.tasks.pretrain_step import pretrain_loss
from simmim_jax.training import compilation
from simmim_jax.training.run import Learner

CHIPS = 4


def config_of(args: argparse.Namespace) -> schema.Pretrain:
    """Return the official pre-training with --layers; those of a Swin's third stage."""
    config = common.pretrain(args.variant)
    config.data.batch_size = CHIPS * args.batch
    if args.variant.startswith("vit"):
        config.model.depth = args.layers
    else:
        config.model.depths = (2, 2, args.layers, 2)
        config.model.window_size = 6
        config.data.image_size = (192, 192)
    for field in args.set:
        name, value = field.split("=")
        try:
            config.model[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            config.model[name] = value
    return values.assume(schema.parse(config))


def textbook(config: schema.Pretrain) -> SimMIM:
    """Return SimMIM around the textbook's ViT or Swin."""
    sys.path.append(str(Path(__file__).parent))
    from textbook_swin import TextbookSwin
    from textbook_vit import TextbookViT

    m = config.model
    dtype = jnp.dtype(config.dtype)
    shared = {"patch_size": m.patch_size[0], "width": m.embed_dim, "dtype": dtype}
    encoder: nn.Module
    if hasattr(m, "depths"):
        encoder = TextbookSwin(
            depths=m.depths, heads=m.num_heads, window=m.window_size, **shared
        )
    else:
        encoder = TextbookViT(
            depth=m.depth,
            heads=m.num_heads,
            drop_path_rate=m.drop_path_rate,
            **shared,
        )
    return SimMIM(encoder, dtype)


def learner_of(config: schema.Pretrain, is_textbook: bool) -> Learner:
    """Return what learns: the package's model or the textbook's."""
    parts = pretrain.Parts(config)
    learner = parts.learner(learners.NUM_EXAMPLES)
    if not is_textbook:
        return learner
    model = textbook(config)
    return dataclasses.replace(
        learner,
        init=functools.partial(pretrain.init, config, model),
        loss=pretrain_loss(model, parts.objective),
    )


def main() -> None:
    """Compile the step, or its Pallas kernels, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--set", nargs="*", default=[], help="fields of the model")
    parser.add_argument("--textbook", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--kernels", action="store_true", help="write bundles of kernels, as JSON"
    )
    args = parser.parse_args()
    if args.kernels:
        dump = tempfile.mkdtemp(dir=args.out.parent)
        schedule.dump_to(dump)
    devices = slices.devices(accelerator(f"v5e-{CHIPS}"))
    learner = learner_of(config_of(args), args.textbook)
    plan = compilation.plan(learner, sharding.make_mesh(devices=devices))
    if args.kernels:
        traced = jax.make_jaxpr(plan.step)(plan.state, plan.batch)
        found = kernels.bundles(kernels.find(traced.jaxpr), devices[0], Path(dump))
        args.out.write_text(json.dumps(list(found.items())))
    else:
        args.out.write_text(plan.lower().compile().as_text())


if __name__ == "__main__":
    main()
