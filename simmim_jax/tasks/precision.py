"""Type of activations and matrix products, chosen by the machine once a run."""

import jax

from simmim_jax.config.schema import RunConfig
from simmim_jax.runtime import distributed, platforms


def of_machine(dtype: str) -> str:
    """Return a dtype of the config with "auto" replaced by what is fast here."""
    return _chosen()[0] if dtype == "auto" else dtype


def resolve(dtype: str, begun: RunConfig | None) -> tuple[str, tuple[str, ...]]:
    """Return the dtype of a run, and what to say of it.

    dtype: of the config; begun: config of the run that is resumed, which keeps the type
    that it began with, on any machine.
    """
    if dtype == "auto" and begun is not None:
        dtype = begun.dtype
    if dtype != "auto":
        return dtype, ()
    dtype, reason = _chosen()
    if jax.process_count() > 1:
        dtype, reason = distributed.of_first_process((dtype, reason))
    return dtype, (f"dtype: {dtype}, since {reason}",)


def _chosen() -> tuple[str, str]:
    backend = jax.default_backend()
    if backend != "cpu":
        return "bfloat16", f"this is a {backend.upper()}"
    feature = platforms.bfloat16_feature()
    if feature:
        return "bfloat16_products", f"this CPU has {feature}"
    return "float32", "this CPU has no fast products of bfloat16 numbers"
