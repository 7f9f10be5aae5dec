"""Devices of absent TPU slices, as compilation targets.

libtpu, which `pip install 'simmim_jax[tpu]'` installs, compiles on any Linux host.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from simmim_jax.errors import MissingPackageError, UserError
from simmim_jax.runtime.accelerators import Accelerator

if TYPE_CHECKING:
    import jax

# Number of chips -> chips along each axis. cloud.google.com/tpu/docs, the pages on v5e
# and v6e (planes) and on v4 and v5p (cuboids).
_PLANES: dict[int, tuple[int, ...]] = {
    **{1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)},
    **{128: (8, 16), 256: (16, 16)},
}
_CUBOIDS: dict[int, tuple[int, ...]] = {
    **{4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)},
    **{128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16)},
    **{2048: (8, 16, 16), 4096: (16, 16, 16)},
}
_SHAPES: dict[str, dict[int, tuple[int, ...]]] = {
    "v4": _CUBOIDS,
    "v5e": _PLANES,
    "v5p": _CUBOIDS,
    "v6e": _PLANES,
}


def set_environment() -> None:
    """Set what libtpu needs on a host without TPUs; call it before JAX starts."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # JAX caches programs for absent devices, but cannot load them.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Log errors only.
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def devices(of: Accelerator) -> "list[jax.Device]":
    """Return the devices of a TPU slice, one a chip.

    raises: UserError for other accelerators and unknown sizes; MissingPackageError
    without libtpu.
    """
    kind = of.name.partition("-")[0]
    if kind not in _SHAPES:
        raise UserError(
            f"cannot compile for {of.name!r}: expected a TPU slice of kind "
            f"{', '.join(_SHAPES)}, such as 'v5e-8'."
        )
    shape = _SHAPES[kind].get(of.chips)
    if shape is None:
        cores = 1 if _SHAPES[kind] is _PLANES else 2  # names of v4 and v5p count cores
        names = ", ".join(f"{kind}-{cores * chips}" for chips in _SHAPES[kind])
        raise UserError(f"no slice {of.name!r} exists: expected one of {names}.")
    if not importlib.util.find_spec("libtpu"):
        raise MissingPackageError(
            "libtpu, the TPU compiler, is missing: pip install 'simmim_jax[tpu]' "
            "(Linux; it needs no TPU)."
        )
    from jax.experimental import topologies

    options: dict[str, object] = {}
    if of.hosts == 1:
        options["chips_per_host_bounds"] = (*shape, 1)[:3]
    if kind == "v4":
        # One device for both cores of a chip, as on Cloud TPUs.
        options["chip_config_name"] = "megacore"
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{kind}:{'x'.join(map(str, shape))}",
        **options,
    )
    return list(topology.devices)
