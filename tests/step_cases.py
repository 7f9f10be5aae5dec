"""Tiny models, a batch and its preparation, for tests of training steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simmim_jax.augment.normalization import Normalization
from simmim_jax.config.schema import Augment
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.vit import ViT
from simmim_jax.tasks.classify_step import class_targets, finetune_prepare
from simmim_jax.tasks.pretrain_step import pretrain_prepare

MODEL = SimMIM(ViT(patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2))
DROPPING = SimMIM(
    ViT(patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5)
)
CLASSIFIER = Classifier(MODEL.encoder, num_classes=3)

PREPARE = {
    "patch_size": (4, 4),
    "mask_unit": (8, 8),
    "mask_ratio": 0.5,
    "normalization": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
# Preparation of pre-training, and of fine-tuning without augmentation.
prepare_pretrain = functools.partial(pretrain_prepare, **PREPARE)
PLAIN = Augment(num_ops=0, erase_prob=0, mixup_alpha=0, cutmix_alpha=0)
prepare_finetune = functools.partial(
    finetune_prepare,
    PLAIN,
    targets=class_targets(3, 0.1),
    normalization=PREPARE["normalization"],
)


def make_batch():
    """Eight images of noise [16 16 3] with labels of three classes."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) % 3,
    }


def random_params(model, *inputs):
    """Parameters of a model of these inputs; none of them is zero."""
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), like)


def pretrain_params():
    """Random parameters of MODEL."""
    return random_params(MODEL, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4), bool))
