"""A model that trains in seconds, on a bundled set: ":pretrain", ":finetune" …"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.data.sources.registry import open_source


def get_config(mode: str) -> ConfigDict:
    """The config of that mode."""
    config = {
        "pretrain": common.pretrain,
        "finetune": common.finetune,
        "segment": common.segment,
    }[mode]()
    config.dtype = "float32"
    config.data.dataset = "bundled:fashion_mnist_10k"
    config.data.image_size = (28, 28)
    config.data.channels = 1
    config.data.batch_size = 16
    config.data.eval_crop = 1.0
    config.data.dtype = "uint8"
    config.data.mean = (0.286,)
    config.data.std = (0.353,)
    config.model.patch_size = (14, 7)
    config.model.embed_dim = 16
    config.model.depth = 2
    config.model.num_heads = 2
    config.optim.warmup = "2 steps"
    config.duration = "12 steps"
    config.log_every = "1 steps"
    config.eval_every = "8 steps"
    config.checkpoint_every = "4 steps"
    if mode == "pretrain":
        config.mask.unit_size = (14, 7)
        config.pictures = 2
    elif mode == "segment":
        config.data.dataset = "bundled:fashion_masks"
        config.data.num_masks = 40
        config.model.head_dim = 8
        config.pictures = 2
    else:
        config.data.num_labels = 40
        common.only_crop_and_flip(config)  # the others take seconds to compile
        config.pictures = 0
    return config


def typed(mode: str, /, **fields: Any) -> Any:
    """The same as a typed config, with fields changed: typed(mode, **{"a.b": 1})."""
    config = get_config(mode)
    config.update_from_flattened_dict(fields)
    return schema.parse(config)


def random_params(model: Any, images: np.ndarray) -> Any:
    """Parameters of a model for such images; its own initialisation is not compiled."""
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), shapes)


def some_masks() -> Source:
    """Held-out images with masks: two batches of them, with all classes."""
    return SubsetSource(
        open_source("bundled:fashion_masks", "validation"), np.arange(32)
    )
