"""Accelerators by name: how many chips on how many hosts, and their peak rate."""

import dataclasses
import re

from simmim_jax.errors import UserError

# Floating-point operations a second and chip, bfloat16, dense, as their makers state.
# cloud.google.com/tpu/docs/v3 to /v6e, "Peak compute per chip".
TPUS = {"v3": 123e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of a TPU chip, a second: its clock, and bytes that it can move."""

    clock: float
    memory: float  # to or from its main memory
    links: float  # to other chips, over all its links


# Memory and links: the same pages, "HBM bandwidth" and half of the "bidirectional
# ICI bandwidth" (v4: "2,400 Gbps"). Clock: that at which the matrix units give the
# peak, 128 x 128 and eight a chip on v4 and v5p, four on v5e; 256 x 256, four on v6e.
CHIPS = {
    "v4": Chip(1.05e9, 1200e9, 300e9),
    "v5e": Chip(1.5e9, 819e9, 200e9),
    "v5p": Chip(1.75e9, 2765e9, 600e9),
    "v6e": Chip(1.75e9, 1640e9, 400e9),
}
# NVIDIA's data sheets of A100, and of L4, H100 (SXM) and H200, which state twice as
# much, "with sparsity"; for GeForce the appendices of its white papers on GA102 and
# Ada, with float32 accumulation.
GPUS = {
    "rtx3090": 71e12,
    "l4": 121e12,
    "rtx4090": 165e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
}
# What JAX calls their devices (`device_kind`). One of a v3 is a core, half a chip.
# Boards with another rate are left out: H100 PCIe and NVL, H200 NVL.
_DEVICES = {
    "TPU v3": TPUS["v3"] / 2,
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "NVIDIA GeForce RTX 3090": GPUS["rtx3090"],
    "NVIDIA L4": GPUS["l4"],
    "NVIDIA GeForce RTX 4090": GPUS["rtx4090"],
    "NVIDIA A100-PCIE-40GB": GPUS["a100"],
    "NVIDIA A100-SXM4-40GB": GPUS["a100"],
    "NVIDIA A100-SXM4-80GB": GPUS["a100"],
    "NVIDIA A100 80GB PCIe": GPUS["a100"],
    "NVIDIA H100 80GB HBM3": GPUS["h100"],
    "NVIDIA H200": GPUS["h200"],
}
# The number in a TPU's name is that of its chips here, and that of its cores elsewhere,
# two a chip. Up to eight such chips are on one host, and four on each of several.
_COUNTS_CHIPS = ("v5e", "v6e")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What a name stands for; peak: bfloat16 operations a second and chip."""

    name: str
    peak: float
    chips: int
    hosts: int

    def images_per_second(self, flops_per_image: float, utilization: float) -> float:
        """What it gets through, with all hosts, at this share of its peak (MFU)."""
        return self.chips * self.peak * utilization / flops_per_image


def accelerator(name: str) -> Accelerator:
    """A TPU slice as Google Cloud spells it, or GPUs: "v5e-8", "v4-32", "h100x8".

    raises: ValueError for any other name.
    """
    spelled = name.lower().replace("v5litepod", "v5e")
    kind, *rest = re.split(r"(-|(?<=\d)x)", spelled, maxsplit=1)
    separator, number = rest or ("x", "1")
    count = int(number) if number.isdecimal() else 0
    if kind in GPUS and separator == "x" and 1 <= count <= 8:
        return Accelerator(spelled, GPUS[kind], count, hosts=1)
    if kind in TPUS and separator == "-" and count >= 1:
        if kind in _COUNTS_CHIPS:
            hosts = 1 if count <= 8 else -(-count // 4)
            return Accelerator(spelled, TPUS[kind], count, hosts)
        if count % 2 == 0:
            return Accelerator(spelled, TPUS[kind], count // 2, hosts=-(-count // 8))
    raise UserError(
        f"{name!r} is no accelerator: expected a TPU slice such as 'v5e-8' (8 chips) "
        "or 'v4-8' (8 cores, 4 chips), or one to eight GPUs of a host such as 'h100' "
        f"or 'h100x8'. Kinds are {', '.join([*TPUS, *GPUS])}."
    )


def peak(device_kind: str) -> float | None:
    """Operations a second of one of JAX's devices, bfloat16; None where unknown."""
    return _DEVICES.get(device_kind)
