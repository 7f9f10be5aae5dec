"""Your own small colour images on one laptop: a ViT with 1.2M parameters at 64 pixels.

    simmim train --config=small --config.data.dataset=/data/photos --workdir=runs/mine
    simmim train --config=small:finetune --config.init_from=runs/mine \
        --config.data.dataset=/data/photos --workdir=runs/mine_classes

":finetune" teaches the pre-trained encoder the classes of a folder with a sub-folder
each, ":linear" trains a linear classifier on it as it is, and ":compare" does both
from scratch and with pre-training in one run. ",smoke" after any of them takes seconds.
Without a data set of yours it is "bundled:climate", 5,228 satellite patches.

":compare" on that set took 35 minutes on 2 cores of an AMD EPYC that did other work as
well (2026-11-28). With all of its 4,610 labels training from scratch was better, 76.1 %
against 71.8 % of 618 held-out images: pre-training pays where there are many images and
few labels (--config.finetune.data.num_labels), and longer, --config.duration.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common

# What `simmim configs small` lists.
ARGUMENTS = ("pretrain", "finetune", "linear", "compare")


def get_config(arg: str = "") -> ConfigDict:
    """Pre-training, or the part of that name; ",smoke" for a test."""
    part, smoke = common.name_and_smoke(arg, ARGUMENTS)
    config = common.comparison(
        dataset="bundled:climate",
        eval_split="validation",
        image_size=(64, 64),
        patch_size=(8, 8),
    )
    for run in (config.pretrain, config.finetune):
        run.model.depth = 6
        run.data.eval_crop = 0.875
        run.data.fast_decode = True
    config.pretrain.mask.unit_size = (16, 16)
    config.pretrain.duration = "100000 examples"
    config.pretrain.eval_every = "20096 examples"  # five times
    config.finetune.data.crop_scale = (0.35, 1.0)
    config.finetune.duration = "30000 examples"
    config.finetune.optim.warmup = "3000 examples"
    config.finetune.eval_every = "5056 examples"  # six times
    if smoke:
        config = common.smoke_comparison(config)
        config.pretrain.data.batch_size = config.finetune.data.batch_size = 16
    if part == "compare":
        return config
    if part == "linear":
        config.finetune.freeze_encoder = True
        config.finetune.optim.weight_decay = 0.0
    return config.pretrain if part in ("", "pretrain") else config.finetune
