"""Names of accelerators: chips, hosts, peaks and the rates that follow."""

import pytest

from simmim_jax.runtime.accelerators import GPUS, TPUS, accelerator, peak


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [
        # cloud.google.com/tpu/docs/v3, v4, v5p: cores; four chips a host.
        ("v3-8", 4, 1),
        ("v4-8", 4, 1),
        ("v4-64", 32, 8),
        ("v5p-16", 8, 2),
        # /v5e and /v6e: chips; 8 on a single host, 4 on each of several.
        ("v5e-1", 1, 1),
        ("v5e-8", 8, 1),
        ("v5litepod-16", 16, 4),
        ("v6e-8", 8, 1),
        ("v6e-256", 256, 64),
        ("h100", 1, 1),
        ("H100x8", 8, 1),
        ("RTX4090x2", 2, 1),
    ],
)
def test_names_give_chips_and_hosts(name, chips, hosts):
    found = accelerator(name)
    assert (found.chips, found.hosts) == (chips, hosts)


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e-0", "v5-8", "v4x8", "v4-7", "h100-8", "h100x9", "b100", "8", "x8"],
)
def test_the_error_of_an_unknown_name_lists_known_ones(name):
    with pytest.raises(ValueError, match=r"'v5e-8'.*v3, v4, .*h200") as error:
        accelerator(name)
    assert repr(name) in str(error.value)


def test_every_kind_has_a_name():
    for kind, rate in TPUS.items():
        assert accelerator(f"{kind}-4").peak == rate
    for kind, rate in GPUS.items():
        assert accelerator(kind).peak == rate


@pytest.mark.parametrize(
    ("name", "images"),
    # ViT-B/16 at 105 GFLOP an image and 40 % of the peak, by hand.
    [("v4-8", 4 * 1048), ("v5e-8", 8 * 750), ("v5p-8", 4 * 1749), ("h100x8", 8 * 3768)],
)
def test_rate_of_a_vit_base(name, images):
    rate = accelerator(name).images_per_second(105e9, 0.4)
    assert rate == pytest.approx(images, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", TPUS["v4"]),
        ("TPU v5 lite", TPUS["v5e"]),
        ("TPU v5", TPUS["v5p"]),
        ("TPU v6 lite", TPUS["v6e"]),
        ("TPU v3", TPUS["v3"] / 2),  # a device is a core
        ("NVIDIA H100 80GB HBM3", GPUS["h100"]),
        ("NVIDIA A100-SXM4-40GB", GPUS["a100"]),
        # Another rate, or an unknown one.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, expected):
    assert peak(kind) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e8", "v5e-8"),
        ("V5E_16", "v5e-16"),
        ("v5lite-8", "v5e-8"),
        ("v7e-8", "v6e-8"),
        ("h100-8", "h100x8"),
        ("rtx409", "rtx4090"),
    ],
)
def test_a_misspelled_name_suggests_a_known_one(name, meant):
    with pytest.raises(ValueError, match=rf'Did you mean "{meant}"\?$'):
        accelerator(name)
