"""Which platforms JAX looks for on machines with and without a TPU."""

import glob
import importlib.util

import pytest

from simmim_jax.runtime import platforms


@pytest.mark.parametrize(
    ("packages", "devices", "vendor", "chosen", "expected"),
    [
        ({"libtpu"}, [], "0x1af4", None, "cpu"),
        ({"libtpu"}, [], "0x1af4", "tpu,cpu", "tpu,cpu"),
        ({"libtpu"}, ["/dev/accel0"], "0x1af4", None, None),
        ({"libtpu"}, ["/dev/vfio/0"], "0x1af4", None, None),
        ({"libtpu"}, [], "0x1ae0", None, None),
        ({"libtpu", "jax_plugins"}, [], "0x1af4", None, None),
        (set(), [], "0x1af4", None, None),
    ],
)
def test_cpus_alone_where_there_can_be_no_tpu(
    packages, devices, vendor, chosen, expected, monkeypatch, tmp_path
):
    (tmp_path / "vendor").write_text(f"{vendor}\n")
    found = {
        platforms._PCI_VENDORS: [str(tmp_path / "vendor")],
        "/dev/accel*": [name for name in devices if "accel" in name],
        "/dev/vfio/[0-9]*": [name for name in devices if "vfio" in name],
    }
    monkeypatch.setattr(glob, "glob", found.__getitem__)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name in packages else None
    )
    environment = {} if chosen is None else {"JAX_PLATFORMS": chosen}
    monkeypatch.setattr(platforms.os, "environ", environment)
    platforms.leave_out_absent_tpu()
    assert environment.get("JAX_PLATFORMS") == expected
