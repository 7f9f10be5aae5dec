"""Six bands of Landsat and the height of the land: the comparison on a CPU.

    simmim train --config=landsat

Pre-trains a ViT with 0.8M parameters on strips of a scene, in windows of 64 pixels,
then fine-tunes it on 60 patches of 16 pixels with the height of their place (coast,
slopes, hills), and the same model from scratch beside it. Tested on 168 patches of
other strips of the same scene: 68.7 ± 5.1 % top-1 with SimMIM, 67.1 ± 5.9 % from
scratch (three seeds, which choose other labels), no difference to speak of. The data
has 4 MB:

    apt-get download r-cran-stars && dpkg-deb -x r-cran-stars_*.deb packages
    python scripts/cut_landsat.py \
        packages/usr/lib/R/site-library/stars/tif data/landsat

":smoke" takes seconds, on bundled images of three bands.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 16x16 pixels of six bands in patches of 4x4."""
    config = common.comparison(
        dataset="data/landsat/patches",
        eval_split="validation",
        image_size=(16, 16),
        channels=6,
        patch_size=(4, 4),
    )
    for run in (config.pretrain, config.finetune):
        run.data.display_bands = (3, 2, 1)  # near infrared, red, green
    config.pretrain.data.dataset = "data/landsat/strips:@64"
    config.pretrain.data.crop_scale = (0.06, 0.12)  # 16 to 22 pixels
    config.pretrain.data.eval_crop = 0.25
    config.pretrain.duration = "50048 examples"
    config.pretrain.eval_every = "12544 examples"  # four times
    config.finetune.data.num_labels = 60
    config.finetune.duration = "300 steps"
    config.finetune.optim.warmup = "30 steps"
    config.finetune.eval_every = "100 steps"
    return common.bundled_comparison(config) if common.is_smoke(arg) else config
