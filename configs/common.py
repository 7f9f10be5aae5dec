"""What pre-training and fine-tuning configs share: every field with its reason.

A config file starts from one of these and changes what its run needs. Lengths of time
are texts: "800 epochs", "1000 steps" or "500000 examples".
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from simmim_jax.configs import models

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _base(mode: str) -> ConfigDict:
    """Fields of both modes."""
    config = ConfigDict()
    # "pretrain", "finetune", or "compare" for both (see `comparison`). With any config
    # "bench_input" measures how fast its images come, "bench" how fast a training step
    # is without them; neither changes anything.
    config.mode = mode
    # Everything random follows from it: weights, order of the data, crops, masks.
    config.seed = 0
    # Type of activations and matrix products: "bfloat16" or "float32". Parameters,
    # optimiser, norms' statistics, softmax and losses are float32 in any case.
    config.dtype = "bfloat16"
    # How long to train.
    config.duration = "100 epochs"

    # How devices share the work; the product of both must be their number.
    config.mesh = ConfigDict()
    # Devices along which the batch is split; -1 takes all that the other axis leaves.
    config.mesh.data = -1
    # Devices along which large parameters and their moments are split as well.
    config.mesh.fsdp = 1

    # What goes in.
    config.data = ConfigDict()
    # "tfds:NAME", "bundled:NAME", or a path: of a folder of images or of .tar shards,
    # of a .tar or .zip, or of a list of images (.txt, .csv, .tsv, .parquet). Folders
    # and lists may be at a URL, such as gs:// or s3://.
    config.data.dataset = "tfds:imagenet2012"
    # Where TFDS keeps prepared sets; "" is ~/tensorflow_datasets.
    config.data.data_dir = ""
    # Split to train on; for TFDS also a slice, "train[:10%]".
    config.data.train_split = "train"
    # Split to evaluate on.
    config.data.eval_split = "validation"
    # Images a step, over all devices of all hosts.
    config.data.batch_size = 2048
    # Height and width that the model sees, in pixels.
    config.data.image_size = (224, 224)
    # Channels of an image: 3 for colour, 1 for grey; any number for raw arrays.
    config.data.channels = 3
    # Random crops cover this share of an image's area; (): the whole image.
    config.data.crop_scale = (0.67, 1.0)
    # Width to height of a random crop.
    config.data.crop_ratio = (3 / 4, 4 / 3)
    # How images are resized: "bilinear" or "bicubic".
    config.data.interpolation = "bilinear"
    # Decode training images at a lower resolution where the crop allows, and resize by
    # OpenCV: faster, and pixels differ by about 1 of 255 on average. False: the
    # pixels of Pillow and torchvision. Evaluation is exact in any case.
    config.data.fast_decode = True
    # Evaluation resizes the short side to image_size / eval_crop and crops the centre;
    # 1.0: it resizes the whole image instead.
    config.data.eval_crop = 224 / 256
    # Mirror half of the images left to right.
    config.data.flip = True
    # Mean of pixels in 0..1, one a channel: the model sees (pixel - mean) / std.
    config.data.mean = IMAGENET_MEAN
    # Their standard deviation.
    config.data.std = IMAGENET_STD
    # Images that cannot be read or decoded are left out, counted and listed in
    # bad_images.tsv; a larger share than this of a split, rounded up to whole images,
    # ends the run.
    config.data.max_bad_fraction = 0.1
    # Processes that decode images; 0: threads of the main process; -1: as many as the
    # CPUs that this process may use can feed.
    config.data.num_workers = -1
    # Threads that decode images, in each process; -1: likewise.
    config.data.num_threads = -1

    # How parameters are updated.
    config.optim = ConfigDict()
    # Learning rates are for a batch of 512 and scale with data.batch_size.
    config.optim.lr = 1e-4
    # Where the linear warm-up starts.
    config.optim.warmup_lr = 5e-7
    # Where the cosine ends.
    config.optim.min_lr = 0.0
    # Length of the warm-up.
    config.optim.warmup = "10 epochs"
    # After the warm-up: "cosine", "multistep" or "constant".
    config.optim.decay = "cosine"
    # "multistep" divides the learning rate by ten at each of these.
    config.optim.milestones = ()
    # "official": rates one update late, cosine counted from step 0, as SimMIM's
    # published runs had it. "official_prefix": late as well, cosine counted from the
    # end of the warm-up (the Swin-Transformer repository). "plain": so, and on time.
    config.optim.schedule = "official"
    # AdamW: decay of the mean of gradients,
    config.optim.b1 = 0.9
    # that of the mean of their squares,
    config.optim.b2 = 0.999
    # what is added to the latter's root,
    config.optim.eps = 1e-8
    # and decay of the weights, times the learning rate.
    config.optim.weight_decay = 0.05
    # "official" decays the mask token and relative position tables, as the official
    # code does without meaning to; "intended" spares them.
    config.optim.decay_groups = "official"
    # Gradients are clipped to this global norm; 0: not.
    config.optim.clip_norm = 5.0
    # Work through a batch in so many parts, for less memory.
    config.optim.accumulation = 1

    # Keep a moving average of the parameters, average = ema_decay * average +
    # (1 - ema_decay) * parameters after each step, from the initial ones on; 0: none.
    # The average is what is evaluated, and what predictions and fine-tuning load.
    config.ema_decay = 0.0

    # A line of metrics.jsonl every so often.
    config.log_every = "50 steps"
    # Evaluate, and save a checkpoint, every so often.
    config.eval_every = "10 epochs"
    # Save a checkpoint every so often between evaluations.
    config.checkpoint_every = "1 epochs"
    # Last checkpoints to keep, beside the best one.
    config.keep_checkpoints = 3
    # A trace of some steps for xprof and TensorBoard, in <workdir>/profile.
    config.profile = ConfigDict()
    # It begins after so many steps of a start: the first ones are unlike the rest.
    config.profile.start_step = 10
    # Steps that it covers; 0: no trace.
    config.profile.num_steps = 0
    # What the modes "bench" and "bench_input" measure, and for what.
    config.bench = ConfigDict()
    # "bench": steps that count.
    config.bench.steps = 20
    # "bench": classes of the synthetic images, in fine-tuning.
    config.bench.num_classes = 1000
    # "bench": save a checkpoint as well, and tell what it costs.
    config.bench.checkpoint = False
    # "bench_input": TPU slices as Google Cloud spells them, and GPUs of a host, such as
    # "h100" and "h100x8".
    config.bench.accelerators = "v5e-1, v5e-8, v4-8, v6e-8, a100, h100x8"
    # Send metrics to Weights & Biases (pip install wandb).
    config.wandb = False
    return config


def pretrain(variant: str = "vit_base", **model: Any) -> ConfigDict:
    """Official pre-training of a model of `models.VARIANTS`, with fields changed."""
    config = _base("pretrain")
    # The encoder: its fields stand in configs/models.py.
    config.model = models.pretraining(variant, **model)

    # What is hidden.
    config.mask = ConfigDict()
    # Units at "random" places, in rectangular "block"s (BEiT), in one "square" at a
    # random place, or in one in the "center".
    config.mask.kind = "random"
    # Height and width of what is hidden together, in pixels.
    config.mask.unit_size = (32, 32)
    # Share of units that are hidden, rounded up to whole units.
    config.mask.ratio = 0.6

    # What is predicted.
    config.target = ConfigDict()
    # "pixels", or "normalized": each by mean and standard deviation of a window around
    # it (Swin V2's recipe).
    config.target.kind = "pixels"
    # Side of that window in pixels, odd.
    config.target.window = 47
    # The target is so many times smaller than the image: its pixels are means of cells.
    config.target.downsample = 1

    # What it costs to be wrong.
    config.loss = ConfigDict()
    # "l1", "l2", "smooth_l1", or "bins": a classification of every value of a pixel.
    config.loss.kind = "l1"
    # Number of bins that "bins" sorts the values 0..255 into.
    config.loss.bins = 8
    # Pixels that count: "masked" or "all".
    config.loss.area = "masked"

    # What predicts it from the encoder's features.
    config.decoder = ConfigDict()
    # "linear", or "mlp": two layers, the first as wide as the features.
    config.decoder.kind = "linear"

    # Reconstructions drawn at each evaluation.
    config.pictures = 8
    return config


def finetune(variant: str = "vit_base", **model: Any) -> ConfigDict:
    """Official fine-tuning of a model of `models.VARIANTS`, with fields changed."""
    config = _base("finetune")
    # Workdir or checkpoint of a pre-training run; "": from scratch.
    config.init_from = ""
    # The checkpoint may have more blocks than config.model: take the first ones.
    config.init_first_blocks = False
    # Leave the encoder as it is, without drop path; the head and its norm learn alone.
    config.freeze_encoder = False
    # As in `_base`, with the values of the recipe.
    config.data.crop_scale = (0.08, 1.0)
    config.data.interpolation = "bicubic"
    # Train on this many examples, equally many a class; 0: on all.
    config.data.num_labels = 0

    # What else happens to training images, in this order, after crop and flip.
    config.augment = ConfigDict()
    # RandAugment, timm's "rand-m9-mstd0.5-inc1": draws so many of 15 operations for
    # each image and carries out each with probability 1/2; 0: none.
    config.augment.num_ops = 2
    # How strongly they change an image: the mean of a normal distribution in 0..10,
    config.augment.magnitude = 9.0
    # and its standard deviation.
    config.augment.magnitude_std = 0.5
    # Random erasing: fills a box with noise in this share of images; 0: none.
    config.augment.erase_prob = 0.25
    # Mixup: pairs of images are averaged with weights from Beta(alpha, alpha); 0: not.
    config.augment.mixup_alpha = 0.8
    # CutMix: a box is taken from the other image, its area from Beta(alpha, alpha);
    # 0: not.
    config.augment.cutmix_alpha = 1.0
    # Share of batches that are mixed; labels are mixed with the images.
    config.augment.mix_prob = 1.0
    # Share of those that CutMix mixes, where Mixup is on too.
    config.augment.mix_switch_prob = 0.5

    # The encoder and its head: their fields stand in configs/models.py.
    config.model = models.finetuning(variant, **model)
    # As in `_base`, with the values of the recipe.
    config.optim.lr = 1.25e-3
    config.optim.warmup_lr = 2.5e-7
    config.optim.min_lr = 2.5e-7
    config.optim.warmup = "20 epochs"
    # Each layer's peak learning rate is this times that of the layer above it.
    config.optim.layer_decay = 0.65
    # Share of each target that is spread over all classes.
    config.label_smoothing = 0.1
    # Augmented training images drawn at the start, beside what they were made of.
    config.pictures = 8
    return config


def only_crop_and_flip(config: ConfigDict) -> None:
    """Turns the augmentations of config.augment off."""
    for name in ("num_ops", "erase_prob", "mixup_alpha", "cutmix_alpha"):
        config.augment[name] = 0


def is_smoke(arg: str) -> bool:
    """Whether a config's argument asks for the smoke test; ValueError if unknown."""
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r}: expected 'smoke' or nothing.")
    return arg == "smoke"


def name_and_smoke(arg: str, names: Iterable[str]) -> tuple[str, bool]:
    """The name in a config's argument, or "", and whether ",smoke" follows it.

    "smoke" alone is one as well. ValueError for any other argument.
    """
    name, _, smoke = ("," + arg if arg == "smoke" else arg).partition(",")
    if name not in ("", *names) or smoke not in ("", "smoke"):
        raise ValueError(
            f"config argument {arg!r}: expected 'smoke' or nothing, or one of "
            f"{', '.join(names)}; with ',smoke' after it to try it in ten steps."
        )
    return name, bool(smoke)


def smoke(config: ConfigDict) -> ConfigDict:
    """Ten steps of eight small bundled images, with the config's own model."""
    config.data.dataset = "bundled:climate"
    config.data.image_size = (64, 64)
    config.data.batch_size = 8
    config.duration = "10 steps"
    config.optim.warmup = "2 steps"
    config.log_every = "1 steps"
    return config


def comparison(
    *,
    dataset: str,
    eval_split: str,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    patch_size: tuple[int, int],
) -> ConfigDict:
    """Pre-training, and fine-tuning with and without it, of a ViT for small images.

    Width 128, depth 4, 0.8M parameters: what two CPU cores train in minutes. It differs
    from ViT-B where a small model wants it: absolute positions, wider initial weights
    and no LayerScale. Each was worth 2 to 4 points of accuracy from scratch with 600
    labels of Fashion-MNIST.
    """
    config = ConfigDict()
    config.mode = "compare"
    config.pretrain = pretrain()
    config.finetune = finetune()
    for run in (config.pretrain, config.finetune):
        run.dtype = "float32"
        run.data.dataset = dataset
        run.data.eval_split = eval_split
        run.data.image_size = image_size
        run.data.channels = len(mean)
        run.data.mean = mean
        run.data.std = std
        run.data.crop_scale = (0.8, 1.0)
        run.data.eval_crop = 1.0
        run.data.interpolation = "bilinear"
        run.data.fast_decode = False  # small images take no time
        run.model.patch_size = patch_size
        run.model.embed_dim = 128
        run.model.depth = 4
        run.model.num_heads = 4
        run.model.use_abs_pos_emb = True
        run.model.layer_scale = 0.0
        run.model.init_std = 0.06
        run.model.init_cut = 0.0
        run.model.drop_path_rate = 0.0
        run.optim.schedule = "plain"
        run.optim.decay_groups = "intended"
        run.optim.b2 = 0.95
        run.optim.warmup_lr = 0.0
    config.pretrain.checkpoint_every = "500 steps"
    config.pretrain.data.batch_size = 128
    config.pretrain.mask.unit_size = patch_size
    config.pretrain.optim.lr = 8e-3  # 2e-3 at this batch size
    config.pretrain.optim.min_lr = 4e-5
    config.pretrain.optim.warmup = "20000 examples"
    only_crop_and_flip(config.finetune)
    config.finetune.pictures = 0
    config.finetune.checkpoint_every = "200 steps"
    config.finetune.data.batch_size = 64
    config.finetune.optim.lr = 16e-3  # 2e-3 at this batch size
    config.finetune.optim.min_lr = 8e-6
    config.finetune.optim.layer_decay = 0.75
    return config


def smoke_comparison(config: ConfigDict) -> ConfigDict:
    """The same in seconds."""
    config.pretrain.duration = "30 steps"
    config.pretrain.optim.warmup = "5 steps"
    config.finetune.duration = "20 steps"
    config.finetune.optim.warmup = "5 steps"
    return config
