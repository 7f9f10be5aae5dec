"""One mesh for everything, from one CPU to a pod, and where arrays lie on it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simmim_jax.errors import UserError

# Smaller parameters stay whole on every device: they are not worth gathering.
MIN_FSDP_SIZE = 2**18


def make_mesh(
    data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A ("data", "fsdp") mesh; -1 takes what the other axis leaves.

    devices: those of a slice that is not there; None: all that are here.
    """
    count = len(devices or jax.devices())
    shape = [data, fsdp]
    if -1 in shape and 0 not in shape:
        shape[shape.index(-1)] = count // abs(data * fsdp)
    if shape[0] * shape[1] != count:
        raise UserError(
            f"config.mesh asks for data={data} x fsdp={fsdp} devices, but there are "
            f"{count}: expected positive numbers with that product, or one of them -1, "
            "which takes the rest."
        )
    return jax.make_mesh(
        tuple(shape),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of shapes: large arrays split over "fsdp", the rest whole.

    An array is split along its largest axis that divides. Optimiser moments have the
    shapes of their parameters, and so lie where those do.
    """
    fsdp = mesh.shape["fsdp"]

    def spec(array: jax.ShapeDtypeStruct) -> NamedSharding:
        axes: list[str | None] = [None] * array.ndim
        divisible = [i for i, n in enumerate(array.shape) if n % fsdp == 0]
        if fsdp > 1 and array.size >= MIN_FSDP_SIZE and divisible:
            axes[max(divisible, key=lambda i: array.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(spec, state)


def gathered(params: Any, mesh: Mesh) -> Any:
    """Parameters that are split over "fsdp", whole on each device while it computes.

    Within jit. Otherwise the compiler splits activations as their weights are, and
    sends activations around instead, of which there are more. Gradients are split as
    the parameters are.
    """
    whole, split = NamedSharding(mesh, PartitionSpec()), state_sharding(params, mesh)

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    def scatter(_: None, gradients: Any) -> tuple[Any]:
        # Whole first, as what they are computed from is.
        gradients = jax.lax.with_sharding_constraint(gradients, whole)
        return (jax.lax.with_sharding_constraint(gradients, split),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather(params)


def on_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """While a function is traced: kernels in it find out what devices share the batch.

    XLA splits all other operations by itself.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def laid_out(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in all processes, onto devices; the rest lies there."""

    def put(x: Any, layout: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array):
            return x
        x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
        # device_put would first send it around, to see whether it is the same.
        return jax.make_array_from_callback(x.shape, layout, lambda part: x[part])

    return jax.tree.map(put, tree, shardings)


def await_on_cpus(arrays: Any) -> None:
    """Waits for what the next step takes, where devices are CPUs.

    A step that is started ahead takes its memory ahead, and gains nothing: host and
    device are the same. Other devices shall always have the next step before them.
    """
    if jax.default_backend() == "cpu":
        jax.block_until_ready(arrays)


def placed(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with their shardings: what to compile for, and restore onto."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> arrays over all devices of all processes."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
