"""Quick start: what pre-training is worth, measured in minutes on a laptop's CPU.

    simmim train --config=quickstart

Pre-trains a ViT with 0.8M parameters on 8,000 Fashion-MNIST images without labels
(bundled; Zalando SE, MIT licence), then fine-tunes it on 1,000 labelled ones, and the
same model from scratch beside it. Tested on 2,000 other images: see README.md. Products
are bfloat16 where a CPU is faster at them, otherwise float32; on GPUs and TPUs, where
nobody has measured it, activations are bfloat16, too.

":smoke" does the same in seconds.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 28x28 grey images in patches of 7x7."""
    config = common.comparison(
        dataset="bundled:fashion_mnist_10k",
        eval_split="validation",
        image_size=(28, 28),
        mean=(0.286,),
        std=(0.353,),
        patch_size=(7, 7),
    )
    config.pretrain.dtype = config.finetune.dtype = "auto"
    config.pretrain.duration = "300000 examples"
    config.pretrain.eval_every = "50000 examples"
    config.finetune.data.num_labels = 1000
    config.finetune.duration = "600 steps"
    config.finetune.optim.warmup = "60 steps"
    config.finetune.eval_every = "100 steps"
    return common.smoke_comparison(config) if common.is_smoke(arg) else config
