"""Absent TPU slices: kinds, sizes and the clock of their chips."""

import importlib.util

import pytest

from simmim_jax.errors import MissingPackageError, UserError
from simmim_jax.performance import slices
from simmim_jax.runtime.accelerators import CHIPS, TPUS, accelerator


@pytest.mark.parametrize("name", ["h100x8", "v3-8"])
def test_other_accelerators_are_an_error(name):
    with pytest.raises(UserError, match=r"expected a TPU slice .* such as 'v5e-8'"):
        slices.devices(accelerator(name))


@pytest.mark.parametrize(
    ("name", "some"),
    [("v5e-3", "v5e-1, v5e-4, v5e-8"), ("v5p-6", "v5p-8, v5p-16"), ("v4-24", "v4-8")],
)
def test_an_unknown_size_is_an_error(name, some):
    match = f"no slice '{name}' exists: expected one of {some}"
    with pytest.raises(UserError, match=match):
        slices.devices(accelerator(name))


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'simmim_jax\[tpu\]'"):
        slices.devices(accelerator("v5e-8"))


def test_matrix_units_give_the_peak_at_their_clock():
    """Multiply-adds a cycle: of 128 x 128 units, or of 256 x 256 (v6e)."""
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    for kind, products in units.items():
        assert 2 * products * CHIPS[kind].clock == pytest.approx(TPUS[kind], rel=0.01)
