"""Type of activations and matrix products, chosen by the machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

from simmim_jax.data.sources.base import as_source
from simmim_jax.models import build_simmim
from simmim_jax.runtime import platforms
from simmim_jax.tasks import precision
from simmim_jax.tasks.values import resolve


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("AuthenticAMD", "fpu avx512f avx512_bf16", "bfloat16_products"),
        ("AuthenticAMD", "fpu avx512f", "float32"),
        ("GenuineIntel", "fpu avx512f avx512_bf16 amx_bf16", "bfloat16_products"),
        ("GenuineIntel", "fpu avx512f avx512_bf16", "float32"),
    ],
)
def test_a_cpu_chooses_by_its_instructions(vendor, flags, dtype, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(platforms, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert precision.of_machine("auto") == dtype
    assert precision.of_machine("bfloat16") == "bfloat16"
    config = tiny_config.typed("pretrain", dtype="auto")
    images = as_source(np.zeros((4, 28, 28, 1), np.uint8))
    found, said = resolve(config, images)
    assert found.dtype == dtype
    assert said[0].startswith(f"dtype: {dtype}, since this CPU has ")


def test_a_run_keeps_its_type_on_another_machine(tmp_path, monkeypatch):
    begun = tiny_config.typed("pretrain", dtype="bfloat16_products")
    monkeypatch.setattr(platforms, "CPU_FLAGS", tmp_path / "none")
    assert precision.resolve("auto", begun) == ("bfloat16_products", ())


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "vit", "patch_size": (4, 4), "embed_dim": 32, "depth": 2},
        {"name": "swin", "patch_size": (2, 2), "embed_dim": 16, "depths": (2, 2)},
        {"name": "swin_v2", "patch_size": (2, 2), "embed_dim": 16, "depths": (2, 2)},
    ],
    ids=lambda fields: fields["name"],
)
def test_gradients_of_rounded_products_are_close_to_float32(encoder):
    heads = 2 if encoder["name"] == "vit" else (2, 2)
    fields = encoder | {"num_heads": heads}
    if encoder["name"] != "vit":
        fields["window_size"] = 4
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    cells = 16 // encoder["patch_size"][0]
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (2, cells, cells))

    def run(dtype):
        model = build_simmim(dtype=dtype, **fields)
        params = model.init(jax.random.key(2), images, mask)["params"]

        def loss(params):
            return jnp.square(model.apply({"params": params}, images, mask)).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    (exact, gradients), (found, rounded) = run("float32"), run("bfloat16_products")
    assert found != exact
    np.testing.assert_allclose(found, exact, rtol=0.01)
    for ours, theirs in zip(*map(jax.tree.leaves, (rounded, gradients)), strict=True):
        assert ours.dtype == jnp.float32
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.05 * scale + 1e-6)
