"""What configs share: the official runs that they start from, smoke tests, comparisons.

A config file starts from `pretrain()` or `finetune()` and changes what its run needs.
Every field is explained in simmim_jax/config/schema.py and by `simmim fields`.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from simmim_jax.config import schema
from simmim_jax.configs import models
from simmim_jax.errors import did_you_mean


def pretrain(variant: str = "vit_base", **model: Any) -> ConfigDict:
    """Official pre-training of a model of `models.VARIANTS`, with fields changed."""
    config = schema.config_dict(schema.Pretrain())
    config.model = models.pretraining(variant, **model)
    return config


def finetune(variant: str = "vit_base", **model: Any) -> ConfigDict:
    """Official fine-tuning of a model of `models.VARIANTS`, with fields changed."""
    config = schema.config_dict(schema.Finetune())
    config.model = models.finetuning(variant, **model)
    return config


def segment(variant: str = "vit_base", **model: Any) -> ConfigDict:
    """Segmentation by a model of `models.VARIANTS`, with fields changed."""
    config = schema.config_dict(schema.Segment())
    config.model = models.segmenting(variant, **model)
    return config


def only_crop_and_flip(config: ConfigDict) -> None:
    """Turns the augmentations of config.augment off."""
    for name in ("num_ops", "erase_prob", "mixup_alpha", "cutmix_alpha"):
        config.augment[name] = 0


def is_smoke(arg: str) -> bool:
    """Whether a config's argument asks for the smoke test; ValueError if unknown."""
    if arg not in ("", "smoke"):
        raise ValueError(
            f"config argument {arg!r}: expected 'smoke' or nothing.{_meant(arg)}"
        )
    return arg == "smoke"


def name_and_smoke(arg: str, names: Iterable[str]) -> tuple[str, bool]:
    """The name in a config's argument, or "", and whether ",smoke" follows it.

    "smoke" alone is one as well. ValueError for any other argument.
    """
    names = [*names]
    name, _, smoke = ("," + arg if arg == "smoke" else arg).partition(",")
    if name not in ("", *names) or smoke not in ("", "smoke"):
        raise ValueError(
            f"config argument {arg!r}: expected 'smoke' or nothing, or one of "
            f"{', '.join(names)}; with ',smoke' after it to try it in seconds."
            + _meant(arg, *names)
        )
    return name, bool(smoke)


def _meant(arg: str, *names: str) -> str:
    return did_you_mean(arg, ["smoke", *names, *(f"{name},smoke" for name in names)])


def smoke(config: ConfigDict) -> ConfigDict:
    """Ten steps of eight small bundled images, with the config's own model."""
    config.data.dataset = "bundled:climate"
    config.data.image_size = (64, 64)
    config.data.batch_size = 8
    config.duration = "10 steps"
    config.optim.warmup = "2 steps"
    if config.optim.milestones:
        config.optim.milestones = ("8 steps",)
    config.log_every = "1 steps"
    return config


def comparison(
    *,
    dataset: str,
    eval_split: str,
    image_size: tuple[int, int],
    channels: int = 3,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    patch_size: tuple[int, int],
    masks: bool = False,
) -> ConfigDict:
    """Pre-training, and fine-tuning with and without it, of a ViT for small images.

    masks: learn to segment in place of fine-tuning.

    Without mean and std they are those of colour photographs, or measured.

    Width 128, depth 4, 0.8M parameters: what two CPU cores train in minutes. It differs
    from ViT-B where a small model wants it: absolute positions, wider initial weights
    and no LayerScale. Each was worth 2 to 4 points of accuracy from scratch with 600
    labels of Fashion-MNIST.
    """
    config = ConfigDict()
    config.mode = "compare"
    config.pretrain = pretrain()
    config.finetune = segment() if masks else finetune()
    for run in (config.pretrain, config.finetune):
        run.dtype = "float32"
        run.data.dataset = dataset
        run.data.eval_split = eval_split
        run.data.image_size = image_size
        run.data.channels = len(mean) or channels
        run.data.mean = mean
        run.data.std = std
        run.data.crop_scale = (0.8, 1.0)
        run.data.eval_crop = 1.0
        run.data.interpolation = "bilinear"
        run.data.fast_decode = False  # small images take no time
        run.model.patch_size = patch_size
        run.model.embed_dim = 128
        run.model.depth = 4
        run.model.num_heads = 4
        run.model.use_abs_pos_emb = True
        run.model.layer_scale = 0.0
        run.model.init_std = 0.06
        run.model.init_cut = 0.0
        run.model.drop_path_rate = 0.0
        run.optim.schedule = "plain"
        run.optim.decay_groups = "intended"
        run.optim.b2 = 0.95
        run.optim.warmup_lr = 0.0
    config.pretrain.checkpoint_every = "500 steps"
    config.pretrain.data.batch_size = 128
    config.pretrain.mask.unit_size = patch_size
    config.pretrain.optim.lr = 8e-3  # 2e-3 at this batch size
    config.pretrain.optim.min_lr = 4e-5
    config.pretrain.optim.warmup = "20000 examples"
    if not masks:
        only_crop_and_flip(config.finetune)
        config.finetune.pictures = 0
    config.finetune.checkpoint_every = "200 steps"
    config.finetune.data.batch_size = 64
    config.finetune.optim.lr = 16e-3  # 2e-3 at this batch size
    config.finetune.optim.min_lr = 8e-6
    config.finetune.optim.layer_decay = 0.75
    return config


def bundled_comparison(config: ConfigDict) -> ConfigDict:
    """The comparison in seconds, with bundled data in place of a download."""
    for run in (config.pretrain, config.finetune):
        run.data.dataset = "bundled:climate"
        run.data.channels = 3
        run.data.display_bands = ()
    config.finetune.data.num_labels = 240
    return smoke_comparison(config)


def smoke_comparison(config: ConfigDict) -> ConfigDict:
    """The same in seconds."""
    config.pretrain.duration = "30 steps"
    config.pretrain.optim.warmup = "5 steps"
    config.finetune.duration = "20 steps"
    config.finetune.optim.warmup = "5 steps"
    return config
