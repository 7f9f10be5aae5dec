"""Linear probe of a SimMIM ViT-B/16 on ImageNet-1k: the encoder stays as it is.

    simmim train --config=vit_base_linear \
        --config.init_from=runs/vit_base --workdir=runs/vit_base_linear

A norm and a linear layer learn on the mean of the patch tokens after block 8 of 12, the
features that the paper probes (its authors in issue 14 of github.com/microsoft/SimMIM),
with 56.7 % top-1. The optimiser's settings were never published: those here are the
fine-tuning recipe without weight decay, label smoothing and all augmentation but crop
and flip, and have not been tried on ImageNet. Do not expect that figure of them.

":smoke" takes ten steps on a bundled set, from a pre-training run of the same sizes, to
see that everything runs.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The probe, or a "smoke" test of the same model."""
    config = common.finetune()
    config.freeze_encoder = True
    config.model.depth = 8
    config.init_first_blocks = True
    config.optim.weight_decay = 0.0
    config.label_smoothing = 0.0
    common.only_crop_and_flip(config)
    return common.smoke(config) if common.is_smoke(arg) else config
