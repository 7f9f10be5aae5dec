"""Platforms that JAX looks for, chosen before it starts."""

import glob
import importlib.util
import os
from pathlib import Path

_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of network cards of Google Cloud
_PCI_VENDORS = "/sys/bus/pci/devices/*/vendor"
CPU_FLAGS = Path("/proc/cpuinfo")  # of Linux
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def leave_out_absent_tpu() -> None:
    """Let JAX use CPUs alone where libtpu is installed and there is no TPU.

    Otherwise libtpu prints a dozen lines of warnings. Changes nothing where the user
    chose platforms, where JAX has the plugin of another accelerator, or where anything
    may be a TPU.
    """
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    has_plugin = importlib.util.find_spec("jax_plugins") is not None
    if has_libtpu and not has_plugin and not _may_have_tpu():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _may_have_tpu() -> bool:
    vendors = (Path(file).read_text().strip() for file in glob.glob(_PCI_VENDORS))
    return any(map(glob.glob, _TPU_DEVICES)) or _GOOGLE in vendors


def bfloat16_feature() -> str:
    """Return the instructions by which this CPU multiplies bfloat16 fast, "" if none.

    Intel's AVX512-BF16 is slower than float32, so there it takes AMX, which a virtual
    machine may hide: findings/avx512_bf16_on_intel.sh.
    """
    try:
        flags = set(CPU_FLAGS.read_text().split())
    except OSError:  # not Linux
        return ""
    if "amx_bf16" in flags:
        return "AMX"
    return "AVX512-BF16" if {"avx512_bf16", "AuthenticAMD"} <= flags else ""
