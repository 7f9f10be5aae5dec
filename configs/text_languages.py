"""The language of a line of text, seen as pixels: the comparison on a CPU.

    simmim train --config=text_languages

Pre-trains a ViT with 0.6M parameters on 2,956 lines in 20 languages, bundled, of which
it sees a quarter of the characters hidden in spans, then fine-tunes it on 400 of them
with their language, and the same model from scratch beside it. Tested on 738 lines of
other articles. docs/tutorials/text.md has results, and why the loss is not SimMIM's L1;
benchmarks/text_labels.py compares with n-grams.

":smoke" does the same in seconds.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on lines of 64 characters, two in a patch of 16x16 pixels."""
    config = common.comparison(
        dataset="bundled:languages",
        eval_split="validation",
        image_size=(16, 512),
        patch_size=(16, 16),
    )
    for run in (config.pretrain, config.finetune):
        run.data.view = "text"
        run.data.channels = 1
        run.data.flip = False
        run.dtype = "auto"
        run.data.batch_size = 32
        run.model.depth = 3
        run.optim.lr = 16e-3  # 1e-3 at this batch size
    config.pretrain.mask.kind = "span"
    config.pretrain.mask.ratio = 0.25
    # SimMIM's L1 loss of hidden pixels alone makes the encoder worse than a fresh one.
    config.pretrain.loss.kind = "bins"
    config.pretrain.loss.area = "all"
    config.pretrain.duration = "64000 examples"
    config.pretrain.optim.warmup = "6400 examples"
    config.pretrain.eval_every = "16000 examples"
    config.finetune.data.num_labels = 400
    config.finetune.duration = "400 steps"
    config.finetune.optim.warmup = "50 steps"
    config.finetune.optim.layer_decay = 0.9
    config.finetune.eval_every = "200 steps"
    return common.smoke_comparison(config) if common.is_smoke(arg) else config
