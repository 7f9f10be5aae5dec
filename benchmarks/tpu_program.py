"""Compiles a pre-training step for four chips of v5e, and writes the program's text.

    python benchmarks/tpu_program.py --variant=vit_base --layers=2 --out=program.hlo

`benchmarks.tpu_compiler` runs it, in the environment that libtpu wants and with the
package of this checkout or of an older one: it uses what both of them have.
"""

import argparse
import ast
import functools
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from simmim_jax.configs import common

from simmim_jax.models.simmim import SimMIM
from simmim_jax.tasks import pretrain
from simmim_jax.training import optim, steps

CHIPS = 4


def config_of(args: argparse.Namespace):
    """The official pre-training with so many layers, in the third stage of a Swin."""
    config = common.pretrain(args.variant)
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
    return config


def model_of(config, textbook: bool):
    """The model of the package, or the textbook's."""
    if not textbook:
        return pretrain.model_of(config)
    sys.path.append(str(Path(__file__).parent))
    from textbook_vit import TextbookViT

    m = config.model
    dtype = jnp.dtype(config.dtype)
    encoder = TextbookViT(
        patch_size=m.patch_size[0],
        width=m.embed_dim,
        depth=m.depth,
        heads=m.num_heads,
        drop_path_rate=m.drop_path_rate,
        dtype=dtype,
    )
    return SimMIM(encoder, dtype)


def main() -> None:
    """Compiles and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--set", nargs="*", default=[], help="fields of the model")
    parser.add_argument("--textbook", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kernels", action="store_true", help="their bundles, as JSON")
    args = parser.parse_args()
    config = config_of(args)
    model = model_of(config, args.textbook)
    prepare = steps.pretrain_prepare(
        patch_size=config.model.patch_size,
        mask_unit=config.mask.unit_size,
        mask_ratio=config.mask.ratio,
        mean=config.data.mean,
        std=config.data.std,
        flip=True,
    )
    init = functools.partial(pretrain.init, config, model)
    params = jax.eval_shape(init, jax.random.key(0))
    tx = optim.adamw(
        lambda step, scale=1.0: 1e-4 * scale,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        mask=optim.decay_mask(params, "official"),
        scales=optim.layer_scales(params, lambda path: 0, 1.0),
    )
    step = functools.partial(
        steps.train_step,
        prepare=prepare,
        loss=steps.pretrain_loss(model, pretrain.objective_of(config)),
        tx=tx,
        seed=0,
    )
    if args.kernels:
        from simmim_jax.performance import kernels, schedule

        dump = tempfile.mkdtemp(dir=args.out.parent)
        schedule.dump_to(dump)
    state = jax.eval_shape(
        lambda p: steps.TrainState(jnp.zeros([], jnp.int32), p, tx.init(p)), params
    )
    batch = {
        "image": jax.ShapeDtypeStruct(
            (CHIPS * args.batch, *config.data.image_size, 3), jnp.uint8
        ),
        "label": jax.ShapeDtypeStruct((CHIPS * args.batch,), jnp.int32),
    }
    slice_ = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = jax.make_mesh(
        (CHIPS, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=slice_.devices,
    )
    if args.kernels:
        with jax.set_mesh(mesh):
            traced = jax.make_jaxpr(step)(state, batch)
        found = kernels.bundles(
            kernels.find(traced.jaxpr), slice_.devices[0], Path(dump)
        )
        args.out.write_text(json.dumps(list(found.items())))
        return
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(whole, split),
        out_shardings=(whole, whole),
    )
    # The kernels look for the mesh here.
    with jax.set_mesh(mesh):
        lowered = jitted.lower(state, batch)
    args.out.write_text(lowered.compile().as_text())


if __name__ == "__main__":
    main()
