"""Accelerators by name: chips, hosts and peak rates."""

import dataclasses
import re

from simmim_jax.errors import UserError, did_you_mean

# Peak of a chip [FLOP/s, dense bfloat16], by kind.
# cloud.google.com/tpu/docs/v3 to /v6e, "Peak compute per chip".
TPUS = {"v3": 123e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of a TPU chip."""

    clock: float  # [Hz]
    memory: float  # bandwidth of its HBM [bytes/s]
    links: float  # bandwidth to other chips, one direction, all links [bytes/s]


# Memory and links: the same pages, "HBM bandwidth" and half of the "bidirectional
# ICI bandwidth" (v4: "2,400 Gbps"). Clock: derived from the peak and the matrix units,
# 128 x 128 and eight a chip on v4 and v5p, four on v5e; 256 x 256, four on v6e.
CHIPS = {
    "v4": Chip(1.05e9, 1200e9, 300e9),
    "v5e": Chip(1.5e9, 819e9, 200e9),
    "v5p": Chip(1.75e9, 2765e9, 600e9),
    "v6e": Chip(1.75e9, 1640e9, 400e9),
}
# NVIDIA's data sheets of A100, L4, H100 (SXM) and H200; all but A100's state twice as
# much, "with sparsity". For GeForce the appendices of the white papers on GA102 and
# Ada, with float32 accumulation.
GPUS = {
    "rtx3090": 71e12,
    "l4": 121e12,
    "rtx4090": 165e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
}
# Peak by JAX's `device_kind` [FLOP/s]. A device of a v3 is a core, half a chip.
# Boards with other rates are left out: H100 PCIe and NVL, H200 NVL.
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
# Names of these kinds count chips; those of others count cores, two a chip. A slice of
# up to eight such chips has one host, a larger one a host for every four.
_COUNTS_CHIPS = ("v5e", "v6e")
# Names that an error suggests.
_EXAMPLES = (
    *(f"{kind}-{2**i}" for kind in TPUS for i in range(13)),
    *(f"{kind}x{count}" for kind in GPUS for count in range(1, 9)),
    *GPUS,
)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A TPU slice, or the GPUs of a host."""

    name: str
    peak: float  # of a chip [FLOP/s, dense bfloat16]
    chips: int
    hosts: int

    def images_per_second(self, flops_per_image: float, utilization: float) -> float:
        """Return the rate of all chips at this share of the peak (MFU)."""
        return self.chips * self.peak * utilization / flops_per_image


def accelerator(name: str) -> Accelerator:
    """Parse a TPU slice in Google Cloud's spelling, or GPUs: "v5e-8", "h100x8".

    raises: UserError for any other name.
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
        f"or 'h100x8'. Kinds: {', '.join([*TPUS, *GPUS])}."
        + did_you_mean(spelled, _EXAMPLES)
    )


def peak(device_kind: str) -> float | None:
    """Return the peak of a JAX device [FLOP/s, dense bfloat16]; None if unknown."""
    return _DEVICES.get(device_kind)
