"""SimMIM, masked image modelling, in JAX/Flax."""

import importlib
from typing import Any

# Imported on first use: `import simmim_jax` starts no JAX.
_API = (
    "compare",
    "export",
    "finetune",
    "load",
    "pretrain",
    "segment",
    "transcribe",
)


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module("simmim_jax.tasks.api"), name)
    raise AttributeError(f"module 'simmim_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
