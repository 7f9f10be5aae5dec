"""Encoders, and the models of the tasks around them, as Flax Linen modules."""

from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from simmim_jax.errors import UserError
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.layers import Encoded as Encoded
from simmim_jax.models.segmenter import Segmenter
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2
from simmim_jax.models.transcriber import Transcriber
from simmim_jax.models.vit import ViT

Model = TypeVar("Model", SimMIM, Classifier, Transcriber, Segmenter)
ENCODERS: dict[str, type[nn.Module]] = {"vit": ViT, "swin": Swin, "swin_v2": SwinV2}


def build_encoder(name: str, **fields: Any) -> nn.Module:
    """Build the encoder `name` with the given fields of its class."""
    if name not in ENCODERS:
        raise UserError(
            f"config.model.name={name!r}: expected one of {sorted(ENCODERS)}."
        )
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ENCODERS[name](**fields)


def dtypes(dtype: str) -> dict[str, Any]:
    """Return the dtype fields of an encoder for config.dtype.

    dtype: "float32" or "bfloat16", of everything; or "bfloat16_products", of operands
    of matrix products, while activations are float32.
    """
    if dtype == "bfloat16_products":
        products, activations = "bfloat16", "float32"
    else:
        products, activations = dtype, dtype
    return {
        "dtype": jnp.dtype(products),
        "activation_dtype": jnp.dtype(activations),
    }


def plain(model: Model) -> Model:
    """Return the model without rematerialisation, block loops or Pallas kernels."""
    fields = {"remat": "none", "scan_layers": False, "attention": "xla"}
    known = {name: v for name, v in fields.items() if hasattr(model.encoder, name)}
    return model.clone(encoder=model.encoder.clone(**known))


def build_simmim(
    *,
    dtype: str,
    decoder_kind: str = "linear",
    downsample: int = 1,
    bins: int = 0,
    **encoder: Any,
) -> SimMIM:
    """Build the pre-training model; dtype: see `dtypes`."""
    return SimMIM(
        build_encoder(**encoder, **dtypes(dtype)),
        dtypes(dtype)["dtype"],
        decoder_kind,
        downsample,
        bins,
    )


def build_classifier(
    *,
    num_classes: int,
    pool: str,
    pool_norm: bool,
    head_scale: float = 0.001,
    dtype: str,
    **encoder: Any,
) -> Classifier:
    """Build the fine-tuning model."""
    module = build_encoder(**encoder, **dtypes(dtype))
    return Classifier(
        module,
        num_classes,
        pool=pool,
        pool_norm=pool_norm,
        head_scale=head_scale,
        norm_eps=getattr(module, "norm_eps", 1e-6),
    )


def build_transcriber(*, num_classes: int, dtype: str, **encoder: Any) -> Transcriber:
    """Build the model of speech to text."""
    return Transcriber(build_encoder(**encoder, **dtypes(dtype)), num_classes)


def build_segmenter(
    *, num_classes: int, head_dim: int, dropout: float, dtype: str, **encoder: Any
) -> Segmenter:
    """Build the segmentation model."""
    return Segmenter(
        build_encoder(**encoder, **dtypes(dtype)),
        num_classes,
        head_dim,
        dropout,
        dtypes(dtype)["activation_dtype"],
    )
