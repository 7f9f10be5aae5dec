"""Fashion-MNIST: 60,000 images without labels, then 600 with, on a CPU.

    python -m simmim_jax.main --config=configs/fashion_mnist.py

Images: Fashion-MNIST (Zalando SE, MIT licence) through TFDS; or a folder that holds its
four .gz files, by --config.pretrain.data.dataset=FOLDER and the same for finetune.
benchmarks/label_efficiency.py runs it for 100, 600 and 6,000 labels and three seeds.
"""

from ml_collections import ConfigDict

from configs import common


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
    return config
