"""Quick start."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The whole comparison; "smoke" is the same in seconds."""
    config = ConfigDict()
    config.mode = "compare"
    config.pretrain = common.pretrain()
    config.finetune = common.finetune()
    for run in (config.pretrain, config.finetune):
        run.dtype = "float32"
        run.data.dataset = "bundled:fashion_mnist_10k"
        run.data.image_size = (28, 28)
        run.data.channels = 1
        run.data.batch_size = 64
        run.data.crop_scale = ()
        run.data.eval_crop = 1.0
        run.data.mean = (0.286,)
        run.data.std = (0.353,)
        run.model.patch_size = (4, 4)
        run.model.embed_dim = 128
        run.model.depth = 4
        run.model.num_heads = 4
        run.model.drop_path_rate = 0.0
        run.optim.schedule = "plain"
    config.pretrain.mask.unit_size = (4, 4)
    config.pretrain.duration = "2 epochs"
    config.pretrain.eval_every = "1 epochs"
    config.pretrain.optim.lr = 1e-3
    config.pretrain.optim.warmup = "100 steps"
    config.finetune.data.num_labels = 600
    config.finetune.duration = "20 epochs"
    config.finetune.optim.warmup = "2 epochs"
    config.finetune.eval_every = "10 epochs"
    if arg == "smoke":
        config.pretrain.duration = "20 steps"
        config.finetune.duration = "20 steps"
    elif arg:
        raise ValueError(f"configs/quickstart.py:{arg}: expected 'smoke' or nothing.")
    return config
