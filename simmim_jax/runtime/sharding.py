"""The device mesh, from one CPU to a pod, and the sharding of arrays over it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simmim_jax.errors import UserError

# Smaller parameters are replicated: gathering them costs more than it saves [elements].
MIN_FSDP_SIZE = 2**18


def make_mesh(
    data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return a ("data", "fsdp") mesh; -1 takes the devices that the other axis leaves.

    devices: None for all devices of the run; others to compile for an absent slice.
    raises: UserError if the product of the axes is not the number of devices.
    """
    count = len(devices or jax.devices())
    shape = [data, fsdp]
    if -1 in shape and 0 not in shape:
        shape[shape.index(-1)] = count // abs(data * fsdp)
    if shape[0] * shape[1] != count:
        raise UserError(
            f"config.mesh asks for data={data} x fsdp={fsdp} devices, but there are "
            f"{count}: expected positive numbers with that product, or -1 for one of "
            "them, which takes the rest."
        )
    return jax.make_mesh(
        tuple(shape),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """Return shardings for a tree of shapes: large arrays over "fsdp", others whole.

    An array is split along its largest divisible axis. Optimiser moments have the
    shapes of their parameters, and therefore their shardings.
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
    """All-gather parameters that are split over "fsdp"; call it under jit.

    Otherwise the compiler shards activations like their weights and communicates the
    activations, which are larger. Gradients are sharded like the parameters.
    """
    whole, split = NamedSharding(mesh, PartitionSpec()), state_sharding(params, mesh)

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    def scatter(_: None, gradients: Any) -> tuple[Any]:
        # Replicated first, like the operands that they are computed from.
        gradients = jax.lax.with_sharding_constraint(gradients, whole)
        return (jax.lax.with_sharding_constraint(gradients, split),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather(params)


def on_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Tell a function the mesh while it is traced: its kind of device, and its axes.

    Pallas kernels need the axes; XLA partitions all other operations by itself.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def laid_out(tree: Any, shardings: Any) -> Any:
    """Put host arrays, equal in all processes, on devices; JAX arrays stay."""

    def put(x: Any, layout: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array):
            return x
        x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
        # device_put would first check over the network that all processes agree.
        return jax.make_array_from_callback(x.shape, layout, lambda part: x[part])

    return jax.tree.map(put, tree, shardings)


def await_on_cpus(arrays: Any) -> None:
    """Wait for the inputs of the next step if devices are CPUs.

    A step enqueued early would allocate its memory early and gain nothing: host and
    device are the same. Accelerators should always have the next step queued.
    """
    if jax.default_backend() == "cpu":
        jax.block_until_ready(arrays)


def placed(shapes: Any, shardings: Any) -> Any:
    """Add shardings to a tree of shapes, to compile for or to restore onto."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turn this process's part of a batch into arrays over all devices of the run."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
