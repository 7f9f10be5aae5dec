"""Fashion-MNIST: 60,000 images without labels, then 600 with, on a CPU.

    simmim train --config=fashion_mnist

Images: Fashion-MNIST (Zalando SE, MIT licence) through TFDS; or from a folder that
holds its four .gz files, by --config.pretrain.data.dataset=FOLDER and
--config.finetune.data.dataset=FOLDER. benchmarks/label_efficiency.py runs it for 100,
600 and 6,000 labels with three seeds; README.md has its table.

":smoke" does the same in seconds.
"""

from ml_collections import ConfigDict

from simmim_jax.configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on 28x28 grey images in patches of 7x7."""
    config = common.comparison(
        dataset="tfds:fashion_mnist",
        eval_split="test",
        image_size=(28, 28),
        mean=(0.286,),
        std=(0.353,),
        patch_size=(7, 7),
    )
    config.pretrain.duration = "500000 examples"
    config.pretrain.eval_every = "100096 examples"  # five times
    config.finetune.data.num_labels = 600
    config.finetune.augment.mixup_alpha = 0.8
    config.finetune.augment.cutmix_alpha = 1.0
    config.finetune.duration = "2000 steps"
    config.finetune.optim.warmup = "100 steps"
    config.finetune.eval_every = "1000 steps"
    return common.smoke_comparison(config) if common.is_smoke(arg) else config
