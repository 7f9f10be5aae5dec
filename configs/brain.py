"""Slices of a head and the lobes of its brain: a comparison of segmentation, on a CPU.

    simmim train --config=brain

Pre-trains a ViT with 0.8M parameters on 121 axial slices of one MR volume, then learns
the masks of eight lobes on 8 of them, from scratch and with SimMIM. Tested on 30 slices
of other blocks of the same head: 44.4 ± 1.3 % mIoU with SimMIM, 43.4 ± 2.5 % from
scratch (three seeds), of which one is better from scratch. The data has 16 MB:

    apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb packages
    python scripts/cut_brain.py packages/usr/share/mricron/templates data/brain

Lobes, since 8 slices show few of 116 regions; data/brain/regions has these. A head of
width 32 and a rate of 2e-3 leave "other", 75 % of the pixels, within 100 steps. Takes
five minutes on 2 cores of an AMD EPYC with AVX512-BF16 (2026-11-29: 304 s with 250
steps of segmentation in place of 300), more where others use them.

":smoke" takes about a minute, on bundled images of clothes with masks.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on slices of 112x96 pixels in patches of 8x8."""
    smoke = common.is_smoke(arg)
    config = common.comparison(
        dataset="bundled:fashion_masks" if smoke else "data/brain/lobes",
        eval_split="validation",
        image_size=(112, 96),
        channels=1,
        patch_size=(8, 8),
        masks=True,
    )
    for run in (config.pretrain, config.finetune):
        run.dtype = "auto"
    config.pretrain.data.batch_size = 32
    config.pretrain.data.crop_scale = (0.5, 1.0)
    config.pretrain.mask.unit_size = (16, 16)
    config.pretrain.optim.lr = 16e-3  # 1e-3 at this batch size
    config.pretrain.optim.warmup = "50 steps"
    config.pretrain.duration = "500 steps"
    config.pretrain.eval_every = "125 steps"
    config.finetune.model.head_dim = 32
    config.finetune.data.batch_size = 8
    config.finetune.data.num_masks = 8
    config.finetune.data.crop_scale = (0.5, 1.0)
    config.finetune.optim.lr = 128e-3  # 2e-3 at this batch size
    config.finetune.optim.warmup = "30 steps"
    config.finetune.duration = "300 steps"
    config.finetune.eval_every = "100 steps"
    if smoke:
        config = common.smoke_comparison(config)
        for run in (config.pretrain, config.finetune):
            run.data.image_size = (32, 32)
            run.data.batch_size = 32
    return config
