"""Check this machine: versions, devices, optional packages, and a training step.

    simmim doctor

For a new TPU VM, Colab or GPU machine: paste what it prints into a bug report. The exit
status is 1 if something that training needs does not work.
"""

import contextlib
import io
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from simmim_jax.cli import arguments
from simmim_jax.runtime import platforms

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Package: what it is for, and the extra that brings it.
_OPTIONAL = {
    "libtpu": ("TPUs, and `simmim aot`", "tpu"),
    "jax-cuda12-plugin": ("NVIDIA GPUs", "gpu"),
    "tensorboardX": ("TensorBoard files", "logging"),
    "wandb": ("Weights & Biases", "logging"),
    "safetensors": ("checkpoints of other libraries", "convert"),
    "torch": (".pth and .bin checkpoints", "convert"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; exit with 1 if training does not work."""
    arguments.parser("doctor", __doc__).parse_args(argv)
    for line in _software():
        print(line)
    sys.exit(0 if _devices_work() and _training_works() else 1)


def _software() -> Iterator[str]:
    yield f"simmim_jax {metadata.version('simmim_jax')}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    for name, (purpose, extra) in _OPTIONAL.items():
        try:
            yield f"{name} {metadata.version(name)}: {purpose}"
        except metadata.PackageNotFoundError:
            yield (
                f"{name} is missing: {purpose}. "
                f"Install it with pip install 'simmim_jax[{extra}]'"
            )
    names = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "TPU_WORKER_ID")
    for name in names:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"
    free = shutil.disk_usage(Path.cwd()).free
    yield f"{os.cpu_count()} CPUs; {free / 2**30:,.0f} GiB free in {Path.cwd()}"


def _devices_work() -> bool:
    """Print the devices that JAX finds."""
    platforms.leave_out_absent_tpu()
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # whatever a driver raises
        print(f"JAX finds no devices: {str(error).strip().splitlines()[0]}")
        return False
    print(f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})")
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    if memory:
        print(f"{memory / 2**30:.1f} GiB of memory each")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        print(
            "There is an NVIDIA driver, but JAX uses the CPU: install "
            "pip install 'simmim_jax[gpu]'"
        )
    return True


def _training_works() -> bool:
    """Train two steps on bundled images, and say how it went."""
    import jax

    from simmim_jax.config import schema
    from simmim_jax.tasks import api

    _, config = arguments.load("quickstart:smoke", [])
    fields = config.pretrain
    fields.duration = fields.log_every = "2 steps"
    fields.optim.warmup = "1 steps"
    fields.pictures = 0
    fields.data.batch_size = 16 * jax.device_count()
    output, begin = io.StringIO(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="simmim-doctor-") as workdir:
        try:
            with contextlib.redirect_stdout(output):
                trained = api.pretrain(schema.single(schema.parse(fields)), workdir)
        except Exception:  # the report has to say what it was
            print(
                "training fails:", output.getvalue(), traceback.format_exc(), sep="\n"
            )
            return False
    seconds = time.perf_counter() - begin
    loss = trained.last["eval_loss"]
    print(f"trained 2 steps in {seconds:.1f} s, held-out loss {loss:.4f}: all works")
    return True
