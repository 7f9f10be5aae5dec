"""Speech and its phones: the comparison on spectrograms, on a CPU.

    simmim train --config=speech

Pre-trains a ViT with 0.8M parameters on 16 minutes of Russian, one speaker, without
text (bundled; festvox-ru, licence MIT-Festival; sources stand in
simmim_jax/data/bundled/README.md), then fine-tunes it to name the phone in the middle
of 0.65 s, one of 49, on 1,000 labelled ones, and the same model from scratch beside it.
Tested on 1,840 phones of other sentences. A spectrogram is an image of 80 mel bands by
64 frames of 10 ms; a patch has all bands of two frames. Needs
pip install 'simmim_jax[audio]'.

    simmim train --config=speech:pretrain --config.data.dataset=/data/speech \
        --workdir=runs/mine

":pretrain" is the first part alone, on recordings of yours; ",smoke" after it, or
":smoke", does the same in seconds.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common

# What `simmim configs speech` lists.
ARGUMENTS = ("pretrain", "compare")


def get_config(arg: str = "") -> ConfigDict:
    """The comparison, or the part of that name; ",smoke" for a test."""
    part, smoke = common.name_and_smoke(arg, ARGUMENTS)
    config = common.comparison(
        dataset="bundled:speech",
        eval_split="validation",
        image_size=(80, 64),
        patch_size=(80, 2),
    )
    for run in (config.pretrain, config.finetune):
        run.data.view = "speech"
        run.data.channels = 1
        run.data.flip = False
    config.pretrain.mask.unit_size = (80, 8)
    config.pretrain.duration = "150000 examples"
    config.pretrain.eval_every = "25088 examples"  # six times
    config.finetune.data.train_split = "train_phones"
    config.finetune.data.eval_split = "validation_phones"
    config.finetune.data.num_labels = 1000
    config.finetune.duration = "600 steps"
    config.finetune.optim.warmup = "60 steps"
    config.finetune.eval_every = "100 steps"
    if smoke:
        config = common.smoke_comparison(config)
        config.pretrain.data.batch_size = config.finetune.data.batch_size = 16
    return config.pretrain if part == "pretrain" else config
