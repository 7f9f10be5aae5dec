"""Fields over the sea and their month: the comparison with missing values, on a CPU.

    simmim train --config=fields

Pre-trains a ViT with 0.8M parameters on windows of 18 degrees of a monthly climatology
of seven variables (COADS), of which 45 to 48 % are missing: land. Then fine-tunes it
with the month of each window as its label, and the same model from scratch beside it.
Tested on 120 other windows of the same months, some of them of land alone: 21.4 ± 1.3 %
top-1 with SimMIM, ahead with each of three seeds, and 13.9 ± 2.5 % from scratch.
The data has 28 MB (NOAA):

    apt-get download ferret-datasets && dpkg-deb -x ferret-datasets_*.deb packages
    mkdir -p data && cp packages/usr/share/ferret-vis/data/coads_climatology.cdf data

":smoke" takes seconds, on bundled images of three bands.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 9x9 pixels of seven variables in patches of 3x3."""
    config = common.comparison(
        dataset="data/coads_climatology.cdf:@9#month",
        eval_split="validation",
        image_size=(9, 9),
        channels=7,
        patch_size=(3, 3),
    )
    for run in (config.pretrain, config.finetune):
        run.data.dtype = "float32"
        run.data.crop_scale = ()
        run.data.flip = False  # trade winds and seasons have a direction
        run.data.display_bands = (0,)  # temperature of the sea
    config.pretrain.duration = "50048 examples"
    config.pretrain.eval_every = "12544 examples"  # four times
    config.finetune.duration = "400 steps"
    config.finetune.optim.warmup = "40 steps"
    config.finetune.eval_every = "100 steps"
    return common.bundled_comparison(config) if common.is_smoke(arg) else config
