"""Every config field: type, unit, allowed values, default and meaning.

Config files start from `config_dict(Pretrain())` or `config_dict(Finetune())` (see
configs/common.py), command lines change fields, and `parse` turns the result into these
dataclasses. `simmim fields` and the reference page print them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from simmim_jax.config import durations
from simmim_jax.config.parsing import (
    Duration,
    field,
    leaves,
    meaning,
    parse_group,
    section,
    to_dict,
)
from simmim_jax.errors import UserError, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIXELS = "height and width in pixels"
DTYPES = ("auto", "bfloat16", "bfloat16_products", "float32")
MODES = (
    "pretrain",
    "finetune",
    "segment",
    "transcribe",
    "compare",
    "bench",
    "bench_input",
)
# Of fine-tuning: of one class an image, of several, and of numbers.
REGRESSION = ("l1", "l2")
LOSSES = ("softmax", "sigmoid", *REGRESSION)


# ---- What goes in --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices share the work: the product of both is the number of devices."""

    data: int = field(
        -1,
        "Devices along which the batch is split; -1 takes what the other axis leaves.",
        low=-1,
        harmless=True,
    )
    fsdp: int = field(
        1,
        "Devices along which large parameters and their moments are split as well.",
        low=-1,
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from, and how they are cropped and resized."""

    dataset: str = field(
        "tfds:imagenet2012",
        'Data set: "tfds:NAME", "bundled:NAME", or a path: a folder of images, of .npy '
        "arrays or of .tar shards, a .tar, .zip or .npy, or a list of images (.txt, "
        ".csv, .tsv, .parquet). Folders and lists may be at a URL, such as gs:// or "
        "s3://. Several as one: \"['/data/a', '/data/b']\", or with their shares "
        "\"[('/data/a', 0.7), ('/data/b', 0.3)]\".",
    )
    data_dir: str = field(
        "",
        'Where TFDS keeps prepared sets; "" is ~/tensorflow_datasets.',
        harmless=True,
    )
    view: str = field(
        "image",
        'How an example becomes an array of a batch: "image", "speech" for log-mel '
        'spectrograms of sounds, or "text" for lines that are drawn as images.',
    )
    text_layout: str = field(
        "monospaced",
        'How view="text" draws lines: two characters in a square patch, '
        '"monospaced"; "proportional"; or "raqm", that with joined letters and from '
        "right to left, if Pillow has Raqm.",
        choices=("monospaced", "proportional", "raqm"),
    )
    font: str = field(
        "",
        'Font file of view="text"; "": DejaVu Sans with Latin, Greek and Cyrillic '
        "letters, as it comes with the package.",
    )
    train_split: str = field(
        "train", 'Split to train on; for TFDS also a slice, "train[:10%]".'
    )
    eval_split: str = field("validation", "Split to evaluate on.")
    batch_size: int = field(
        2048, "Images a step, over all devices of all hosts.", unit="images", low=1
    )
    dtype: str = field(
        "auto",
        'Type of pixels: "uint8" for photographs, others for measured values; "auto": '
        "one that holds the values of a sample of the training split.",
        choices=(
            *("auto", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
            "float32",
        ),
        earlier="uint8",
    )
    value_range: tuple[float, ...] = field(
        (),
        "Map these values linearly to 0 and 255, so that dtype is uint8; those outside "
        "are clipped, and pixels without data become 0. (0, 4095) for 12-bit pixels; "
        "(): keep values as they are.",
        unit="values, lowest and highest",
    )
    image_size: tuple[int, int] = field(
        (224, 224),
        "Size that the model sees; of a spectrogram: bands, and frames of 10 ms.",
        unit=PIXELS,
        low=1,
    )
    channels: int = field(
        3,
        "Channels of an image: 3 for colour, 1 for grey; any number for arrays.",
        low=1,
    )
    crop_scale: tuple[float, ...] = field(
        (0.67, 1.0),
        "Random crops cover this range of an image's area; (): the whole image.",
        unit="share of the area, smallest and largest",
        low=0,
        high=1,
    )
    crop_ratio: tuple[float, float] = field(
        (3 / 4, 4 / 3),
        "Range of width to height of random crops.",
        unit="width / height",
        low=0,
    )
    interpolation: str = field(
        "bilinear",
        "How images are resized: with one of Pillow's filters, antialiased but for "
        '"nearest".',
        choices=("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    )
    fast_decode: bool = field(
        True,
        "Decode training images at a lower resolution where the crop allows, and "
        "resize with OpenCV: faster, pixels differ by about 1 of 255 on average (other "
        "values by 2 % of their deviation). "
        "False: the pixels of Pillow and torchvision. Evaluation is always exact.",
    )
    eval_crop: float = field(
        224 / 256,
        "Evaluation resizes the short side to image_size / eval_crop and crops the "
        "centre; 1.0 resizes the whole image instead, unless eval_fit says otherwise.",
        low=0,
        high=1,
    )
    eval_fit: str = field(
        "official",
        'How evaluation fits images: "cover" image_size / eval_crop and crop the '
        'centre, "squash" to that size and crop, or scale to "pad" with the mean; '
        '"official" covers, or squashes with eval_crop=1.',
        choices=("official", "cover", "squash", "pad"),
    )
    eval_center: str = field(
        "round",
        "Where a crop of evaluation begins, half of what is cut off: rounded to whole "
        'pixels, half to even, or to the "floor" as in Hugging Face transformers.',
        choices=("round", "floor"),
    )
    flip: bool = field(True, "Mirror half of the images left to right.")
    bands: tuple[str, ...] = field(
        (),
        "Names of the channels, for files that name theirs: they are chosen and "
        "ordered so; (): all, as they are.",
    )
    fill_bands: bool = field(
        False,
        "Bands of data.bands that a file lacks are pixels without a measurement; "
        "False: an error.",
    )
    level: int = field(
        0,
        "Level of images that are pyramids, in TIFF files: 0 has the full resolution, "
        "each next one usually half of it.",
        low=0,
    )
    nodata: tuple[float, ...] = field(
        (),
        "Value of pixels without a measurement: they count in neither statistics nor "
        "loss, and the model sees 0; (): the one that files declare. NaN always is.",
    )
    normalization: str = field(
        "standard",
        'How values become what the model sees: "standard", (pixel - mean) / std; '
        '"clipped", that within data.clip; "percentiles" and "range", from -1 to 1 '
        'between those of data.clip; "decibels", 10 log10(pixel) as "standard".',
        choices=("standard", "clipped", "percentiles", "range", "decibels"),
    )
    clip: tuple[float, ...] = field(
        (),
        'Lowest and highest value that stay: with "clipped" in standard deviations, '
        '(): (-2, 2); with "percentiles" in percent, (): (1, 99); with "range" as '
        "pixels.",
    )
    statistics: str = field(
        "",
        'File of `simmim stats` that mean and std are taken from; "": a sample of the '
        "training split is measured.",
        harmless=True,
    )
    mean: tuple[float, ...] = field(
        (),
        "Mean of the pixels, one a channel: the model sees (pixel - mean) / std. (): "
        "ImageNet's for colour photographs, measured for everything else.",
        unit="pixels in 0..1 with dtype uint8, the values themselves with others",
    )
    std: tuple[float, ...] = field(
        (),
        "Standard deviation of the pixels, one a channel; (): as mean.",
        unit="as mean",
        low=0,
    )
    display_bands: tuple[int, ...] = field(
        (),
        "Bands that pictures show, counted from 0: one in viridis's colours (in grey "
        'with normalization "range"), three as red, green and blue, more side by side; '
        "(): the first three.",
        low=0,
        harmless=True,
    )
    max_bad_fraction: float = field(
        0.1,
        "Images that cannot be read or decoded are skipped, counted and listed in "
        "bad_images.tsv; a larger share of a split than this ends the run.",
        unit="share of the images, rounded up to whole images",
        low=0,
        high=1,
        harmless=True,
    )
    max_image_pixels: int = field(
        64_000_000,
        "Larger images are bad images and not decoded; docs/how-to/data.md has what "
        "this means for each format. The default holds decoding to 1 GB of memory.",
        unit="pixels",
        low=1,
        high=178_956_970,  # Pillow's own limit
    )
    max_file_mb: int = field(
        256,
        "Larger files are bad images and not read, also those in .tar and .zip files, "
        "where their size after decompression counts.",
        unit="MB",
        low=1,
    )
    num_workers: int = field(
        -1,
        "Processes that decode images; 0: threads of the main process; -1: as many as "
        "the CPUs of this process can feed.",
        low=-1,
        harmless=True,
    )
    num_threads: int = field(
        -1,
        "Threads that decode images, in each process; -1: likewise.",
        low=-1,
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneData(Data):
    """Data of fine-tuning: stronger crops, and a choice of labels."""

    crop_scale: tuple[float, ...] = field(
        (0.08, 1.0),
        "Random crops cover this range of an image's area; (): the whole image.",
        unit="share of the area, smallest and largest",
        low=0,
        high=1,
    )
    interpolation: str = field(
        "bicubic",
        "How images are resized: with one of Pillow's filters, antialiased but for "
        '"nearest".',
        choices=("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    )
    num_labels: int = field(
        0,
        "Train on this many examples, equally many a class; 0: on all.",
        unit="examples",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What fine-tuning learns of lists and .npz files, with loss sigmoid, l1 or l2."""

    columns: tuple[str, ...] = field(
        (),
        "Columns of a list, or arrays of an .npz file, of numbers; of classes with "
        'loss="sigmoid", 1 or 0. What is empty is not known. (): the column labels or '
        'label, with "cat;dog" for several classes; or the array labels [n] or [n, m].',
    )
    mean: tuple[float, ...] = field(
        (),
        "Mean of each number: the model learns (number - mean) / std; (): that of the "
        "training split.",
        unit="as the numbers",
    )
    std: tuple[float, ...] = field(
        (),
        "Standard deviation of each number; (): as mean.",
        unit="as the numbers",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentData(Data):
    """Data of segmentation: images with a mask each."""

    view: str = field(
        "masks",
        "How an example becomes arrays of a batch: the name of a modality with masks.",
    )
    batch_size: int = field(
        16, "Images a step, over all devices of all hosts.", unit="images", low=1
    )
    image_size: tuple[int, int] = field(
        (512, 512), "Size that the model sees.", unit=PIXELS, low=1
    )
    crop_scale: tuple[float, ...] = field(
        (0.25, 1.0),
        "Random crops cover this range of an image's area; (): the whole image.",
        unit="share of the area, smallest and largest",
        low=0,
        high=1,
    )
    eval_crop: float = field(
        1.0,
        "Evaluation of whole images resizes the short side to image_size / eval_crop "
        "and crops the centre; 1.0 resizes the whole image instead, unless eval_fit "
        "says otherwise.",
        low=0,
        high=1,
    )
    ignore_index: int = field(
        255,
        "Value of pixels in masks that count in neither loss nor mIoU.",
        low=0,
        high=65535,
    )
    eval_windows: bool = field(
        False,
        "Evaluate and predict at the images' own resolution, in windows of image_size "
        "that overlap by a third; False: images are resized to image_size.",
    )
    num_classes: int = field(
        0,
        "Number of classes in masks, whose indices are below it; 0: as classes.txt "
        "names, or as many as the masks of the training split have.",
        low=0,
        high=65535,
    )
    num_masks: int = field(
        0,
        "Train on this many images, chosen by the seed; 0: on all that have a mask.",
        unit="images",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranscribeData(Data):
    """Data of speech to text: whole utterances with transcripts."""

    batch_size: int = field(
        32,
        "Utterances a step, over all devices of all hosts.",
        unit="utterances",
        low=1,
    )
    view: str = field("speech", 'Speech to text takes "speech".', choices=("speech",))
    image_size: tuple[int, int] = field(
        (80, 1600),
        "Bands, and frames of 10 ms that the longest utterance has; longer ones are "
        "left out.",
        unit=PIXELS,
        low=1,
    )
    channels: int = field(1, "Channels of a spectrogram.", low=1, high=1)
    flip: bool = field(False, "Sounds are not mirrored.", choices=(False,))
    num_labels: int = field(
        0,
        "Train on this many utterances; 0: on all.",
        unit="utterances",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """How transcripts are normalised: Unicode NFC, white space as single spaces."""

    casefold: bool = field(True, "Ignore case, by Unicode's case folding.")
    punctuation: bool = field(
        False,
        "Keep punctuation and symbols; False: they are spaces, but for apostrophes "
        "within a word.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Parts of a spectrogram that training hides (SpecAugment, Park et al. 2019)."""

    time_masks: int = field(2, "Spans of time; 0: none.", low=0)
    time_width: int = field(
        40,
        "Their largest width, at most a fifth of the utterance.",
        unit="frames",
        low=0,
    )
    band_masks: int = field(2, "Ranges of bands; 0: none.", low=0)
    band_width: int = field(15, "Their largest width.", unit="bands", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """What else happens to training images, in this order, after crop and flip."""

    num_ops: int = field(
        2,
        'RandAugment, timm\'s "rand-m9-mstd0.5-inc1": number of operations drawn for '
        "each image, each carried out with probability 1/2; 0: none.",
        low=0,
    )
    magnitude: float = field(
        9.0, "Mean strength of the operations.", unit="0 to 10", low=0, high=10
    )
    magnitude_std: float = field(
        0.5, "Standard deviation of the strength.", unit="as magnitude", low=0
    )
    erase_prob: float = field(
        0.25,
        "Random erasing fills a box with noise in this share of images; 0: none.",
        low=0,
        high=1,
    )
    mixup_alpha: float = field(
        0.8,
        "Mixup averages pairs of images with weights from Beta(alpha, alpha); 0: off.",
        low=0,
    )
    cutmix_alpha: float = field(
        1.0,
        "CutMix takes a box from the other image, its area from Beta(alpha, alpha); "
        "0: off.",
        low=0,
    )
    mix_prob: float = field(
        1.0,
        "Share of groups that are mixed; labels are mixed with the images.",
        low=0,
        high=1,
    )
    mix_switch_prob: float = field(
        0.5,
        "Share of mixed groups that use CutMix, if Mixup is on as well.",
        low=0,
        high=1,
    )
    mix_group: int = field(
        128,
        "Mixup and CutMix pair the images of consecutive groups of this size, which "
        "share a weight or a box. It divides the images of each device, so that none "
        "moves; a smaller batch is one group. 0: the whole batch, across devices.",
        unit="images",
        low=0,
    )


# ---- The model -----------------------------------------------------------------------

_ATTENTION = (
    'How attention is computed: "xla", or "pallas" for a kernel of our own on TPUs, '
    "for at most 256 tokens (of a window, for Swin). No chip has run it yet: compare "
    "both before a long run."
)
_REMAT = (
    'What the backward pass computes again, to save memory: "none", "full" (whole '
    'blocks) or "dots" (all but the matrix products of projections and MLPs).'
)
_DROP_PATH = (
    "Probability that the last block's residual branches are dropped; it grows "
    "linearly from the first block."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT:
    """Vision Transformer; the defaults are ViT-B/16 [86M parameters]."""

    name: str = field("vit", "Encoder; the other fields are those of its class.")
    patch_size: tuple[int, int] = field(
        (16, 16), "Size of a patch.", unit=PIXELS, low=1
    )
    embed_dim: int = field(768, "Width of the residual stream.", low=1)
    depth: int = field(12, "Number of blocks.", low=1)
    num_heads: int = field(12, "Attention heads; embed_dim is a multiple.", low=1)
    mlp_ratio: float = field(4.0, "Width of the MLP.", unit="embed_dim", low=0)
    qkv_bias: bool = field(True, "Biases of queries and values.")
    use_abs_pos_emb: bool = field(
        False, "Learned absolute positions, added to the tokens."
    )
    use_sincos_pos_emb: bool = field(
        False,
        "Fixed absolute positions (MAE's sines and cosines), added to the tokens, for "
        "any number of them.",
    )
    conv_pos_width: int = field(
        0,
        "Width of a depthwise convolution of the tokens, odd, whose output is added to "
        "them: positions for any number of tokens, after CPVT; 0: none.",
        unit="tokens",
        low=0,
    )
    layer_scale: float = field(
        0.1, "Initial value of LayerScale; 0: no LayerScale.", low=0
    )
    drop_path_rate: float = field(0.1, _DROP_PATH, low=0, high=1)
    norm_eps: float = field(1e-6, "Added to the variance in layer norms.", low=0)
    init_std: float = field(
        0.02, "Standard deviation of initial weights; narrow models need more.", low=0
    )
    attention: str = field("xla", _ATTENTION, choices=("xla", "pallas"), harmless=True)
    remat: str = field("none", _REMAT, choices=("none", "full", "dots"), harmless=True)
    scan_layers: bool = field(
        False,
        "Compile one block and loop over it: compiles sooner. Needs remat, without "
        "which a loop keeps more than unrolled blocks do.",
        harmless=True,
    )
    use_rel_pos_bias: bool = field(
        False, "Relative position bias with a table for each block."
    )
    use_shared_rel_pos_bias: bool = field(
        True, "Relative position bias with one table that all blocks share."
    )
    final_norm: bool = field(True, "Normalise the encoder's output.")
    init_cut: float = field(
        1.0,
        "Initial weights are truncated at this many standard deviations; 0: not.",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swin:
    """Swin Transformer; the defaults are Swin-B [88M parameters]."""

    name: str = field("swin", "Encoder; the other fields are those of its class.")
    patch_size: tuple[int, int] = field((4, 4), "Size of a patch.", unit=PIXELS, low=1)
    embed_dim: int = field(
        128, "Width of the first stage; it doubles from stage to stage.", low=1
    )
    depths: tuple[int, ...] = field(
        (2, 2, 18, 2), "Number of blocks in each stage.", low=1
    )
    num_heads: tuple[int, ...] = field(
        (4, 8, 16, 32), "Attention heads in each stage.", low=1
    )
    window_size: int = field(
        7,
        "Side of an attention window; a smaller grid is one window.",
        unit="tokens",
        low=1,
    )
    mlp_ratio: float = field(4.0, "Width of the MLP.", unit="the stage's width", low=0)
    qkv_bias: bool = field(True, "Biases of queries, keys (Swin alone) and values.")
    patch_norm: bool = field(True, "Normalise patches after their embedding.")
    pad_after_shift: bool = field(
        False,
        "Zero-pad a grid that windows do not divide after it is shifted, as timm does, "
        "not before, as Swin's detection code does. Without padding both are the same.",
    )
    use_abs_pos_emb: bool = field(
        False, "Learned absolute positions, added to the tokens."
    )
    drop_path_rate: float = field(0.0, _DROP_PATH, low=0, high=1)
    norm_eps: float = field(1e-5, "Added to the variance in layer norms.", low=0)
    init_std: float = field(0.02, "Standard deviation of initial weights.", low=0)
    attention: str = field("xla", _ATTENTION, choices=("xla", "pallas"), harmless=True)
    remat: str = field("none", _REMAT, choices=("none", "full", "dots"), harmless=True)
    scan_layers: bool = field(
        False,
        "Compile two blocks of a stage and loop over them, as for the ViT.",
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinV2(Swin):
    """Swin Transformer V2; the defaults are Swin V2-B [88M parameters]."""

    name: str = field("swin_v2", "Encoder; the other fields are those of its class.")
    pretrained_window_sizes: tuple[int, ...] = field(
        (),
        "Windows of the stages when positions were learned, if another size; (): the "
        "same.",
        unit="tokens",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What a classifier has beside its encoder."""

    pool: str = field(
        "mean",
        'Classify the "mean" of the patch tokens or, with a ViT, the "cls" token.',
        choices=("mean", "cls"),
    )
    pool_norm: bool = field(True, "Normalise what was pooled; Swin normalises before.")
    head_scale: float = field(
        0.001, "The head's initial weights are multiplied by it.", low=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentHead:
    """What a segmentation model has beside its encoder: UperNet's head."""

    head_dim: int = field(512, "Width of the head.", low=1)
    dropout: float = field(
        0.1,
        "Share of the head's channels that are dropped before pixels are classified.",
        low=0,
        below=1,
    )


# Fields of each encoder, by config.model.name; a new encoder adds its own.
ENCODERS: dict[str, type] = {"vit": ViT, "swin": Swin, "swin_v2": SwinV2}


@functools.cache
def with_head(encoder: type, head: type) -> type:
    """Return the fields of an encoder and of a head, as one dataclass."""
    name = f"{encoder.__name__}With{head.__name__}"
    return dataclasses.make_dataclass(name, [], bases=(head, encoder), frozen=True)


def classifier(encoder: type) -> type:
    """Return the fields of an encoder and of a classifier's head."""
    return with_head(encoder, Head)


def segmenter(encoder: type) -> type:
    """Return the fields of an encoder and of a segmentation model's head."""
    return with_head(encoder, SegmentHead)


def encoder_fields(model: Any) -> dict[str, Any]:
    """Return the fields of config.model that are its encoder's."""
    names = {each.name for each in dataclasses.fields(ENCODERS[model.name])}
    return {name: value for name, value in to_dict(model).items() if name in names}


# ---- The objective of pre-training ---------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """What is hidden."""

    kind: str = field(
        "random",
        'Units at "random" places, in rectangular "block"s (BEiT), in one "square" at '
        'a random place, in one in the "center", or in "span"s of whole columns.',
        choices=("random", "block", "square", "center", "span"),
    )
    unit_size: tuple[int, int] = field(
        (32, 32), "Size of what is hidden together.", unit=PIXELS, low=1
    )
    ratio: float = field(
        0.6,
        "Share of units that are hidden, rounded up to whole units.",
        low=0,
        high=1,
    )
    span: tuple[int, int] = field(
        (1, 6),
        'Length of "span"s, drawn between shortest and longest.',
        unit="units of unit_size",
        low=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted."""

    kind: str = field(
        "pixels",
        '"pixels", or "normalized": each by mean and standard deviation of a window '
        "around it (Swin V2's recipe).",
        choices=("pixels", "normalized"),
    )
    window: int = field(47, "Side of that window, odd.", unit="pixels", low=1)
    downsample: int = field(
        1,
        "The target is this many times smaller than the image: its pixels are means "
        "of cells.",
        low=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """How errors of the prediction count."""

    kind: str = field(
        "l1",
        '"l1", "l2", "smooth_l1", or "bins": a classification of every value of a '
        "pixel.",
        choices=("l1", "l2", "smooth_l1", "bins"),
    )
    bins: int = field(
        8, 'Number of bins that "bins" sorts the values 0..255 into.', low=2, high=256
    )
    area: str = field("masked", "Pixels that count.", choices=("masked", "all"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """What predicts the target from the encoder's features."""

    kind: str = field(
        "linear",
        '"linear", or "mlp": two layers, the first as wide as the features.',
        choices=("linear", "mlp"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What features are worth while the encoder is pre-trained."""

    every: Duration = field(
        "0 steps",
        "Interval of probes, each of which is an evaluation, too; 0: none. A probe "
        "measures the effective rank of held-out features and, where there are labels, "
        "how many images their nearest training images classify right. It costs a "
        "forward pass for each of probe.images of both splits, without labels of one: "
        "a third of training on them.",
        unit="duration",
        harmless=True,
    )
    images: int = field(
        10_000,
        "Images of each split that a probe takes at most, the same ones every time.",
        unit="images",
        low=1,
        harmless=True,
    )
    k: int = field(20, "Nearest neighbours that vote.", low=1, harmless=True)
    temperature: float = field(
        0.07,
        "A vote counts exp(cosine similarity / temperature), as for DINO.",
        low=0,
        harmless=True,
    )


# ---- Optimisation --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and its learning rate; the defaults are those of pre-training."""

    lr: float = field(
        1e-4, "Peak learning rate; the rate used is lr x batch_size / 512.", low=0
    )
    warmup_lr: float = field(
        5e-7, "Where the linear warm-up starts.", unit="as lr", low=0
    )
    min_lr: float = field(0.0, "Where the cosine ends.", unit="as lr", low=0)
    warmup: Duration = field("10 epochs", "Length of the warm-up.", unit="duration")
    decay: str = field(
        "cosine",
        'Learning rate after the warm-up; "linear" ends at min_lr like the cosine.',
        choices=("cosine", "linear", "multistep", "constant"),
    )
    milestones: tuple[Duration, ...] = field(
        (),
        '"multistep" divides the learning rate by ten at each of these.',
        unit="durations",
    )
    schedule: str = field(
        "official",
        '"official": rates one update late, cosine counted from step 0, as SimMIM '
        'published it. "official_prefix": late as well, cosine counted from the end of '
        'the warm-up (the Swin-Transformer repository). "plain": so, undelayed.',
        choices=("official", "official_prefix", "plain"),
    )
    b1: float = field(0.9, "AdamW beta1.", low=0, below=1)
    b2: float = field(0.999, "AdamW beta2.", low=0, below=1)
    eps: float = field(1e-8, "AdamW epsilon.", low=0)
    weight_decay: float = field(
        0.05, "AdamW weight decay, times the learning rate.", low=0
    )
    decay_groups: str = field(
        "official",
        '"official" decays the mask token and relative position tables, as the '
        'official code does by accident; "intended" spares them.',
        choices=("official", "intended"),
    )
    clip_norm: float = field(
        5.0, "Clip gradients to this global norm; 0: do not.", low=0
    )
    accumulation: int = field(
        1, "Split a batch into this many micro-batches, to save memory.", low=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptim(Optim):
    """AdamW and its learning rate; the defaults are those of fine-tuning."""

    lr: float = field(
        1.25e-3, "Peak learning rate; the rate used is lr x batch_size / 512.", low=0
    )
    warmup_lr: float = field(
        2.5e-7, "Where the linear warm-up starts.", unit="as lr", low=0
    )
    min_lr: float = field(2.5e-7, "Where the cosine ends.", unit="as lr", low=0)
    warmup: Duration = field("20 epochs", "Length of the warm-up.", unit="duration")
    layer_decay: float = field(
        0.65,
        "Each layer's peak learning rate is this times that of the layer above it.",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptim(FinetuneOptim):
    """AdamW and its learning rate; the defaults are BEiT's for segmentation."""

    lr: float = field(
        9.6e-4, "Peak learning rate; the rate used is lr x batch_size / 512.", low=0
    )
    warmup_lr: float = field(
        0.0, "Where the linear warm-up starts.", unit="as lr", low=0
    )
    min_lr: float = field(0.0, "Where the decay ends.", unit="as lr", low=0)
    warmup: Duration = field("1500 steps", "Length of the warm-up.", unit="duration")
    decay: str = field(
        "linear",
        'Learning rate after the warm-up; "linear" ends at min_lr like the cosine.',
        choices=("cosine", "linear", "multistep", "constant"),
    )
    schedule: str = field(
        "plain",
        '"plain": a rate applies to its own update, and decay starts after the '
        'warm-up; "official" and "official_prefix" as in pre-training.',
        choices=("official", "official_prefix", "plain"),
    )
    decay_groups: str = field(
        "intended",
        '"intended" spares tokens and position tables of weight decay; "official" as '
        "in pre-training.",
        choices=("official", "intended"),
    )
    layer_decay: float = field(
        0.9,
        "Each layer's peak learning rate is this times that of the layer above it.",
        low=0,
    )


# ---- Runs ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A trace of some steps for xprof and TensorBoard, in <workdir>/profile."""

    start_step: int = field(
        10,
        "Steps before it begins: the first ones are unlike the rest.",
        unit="steps",
        low=0,
        harmless=True,
    )
    num_steps: int = field(
        0, "Steps that it covers; 0: no trace.", unit="steps", low=0, harmless=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What the modes "bench" and "bench_input" measure, and for what."""

    steps: int = field(
        20, '"bench": steps that count.', unit="steps", low=1, harmless=True
    )
    num_classes: int = field(
        1000,
        '"bench": classes of the synthetic images, in fine-tuning.',
        low=2,
        harmless=True,
    )
    checkpoint: bool = field(
        False,
        '"bench": save a checkpoint as well, and measure its cost.',
        harmless=True,
    )
    accelerators: str = field(
        "v5e-1, v5e-8, v4-8, v6e-8, a100, h100x8",
        '"bench_input": TPU slices as Google Cloud spells them, and GPUs of a host, '
        'such as "h100" and "h100x8".',
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Fields that all runs share."""

    mode: str = field(
        "pretrain",
        '"pretrain"; "finetune", "segment" or "transcribe", which may start from it; '
        'or "compare": pre-training, then fine-tuning or segmentation with and without '
        'it. With any config "bench" measures how fast a training step is and '
        '"bench_input" how fast its images come; neither changes anything.',
        choices=MODES,
    )
    seed: int = field(
        0,
        "Everything random follows from it: weights, order of the data, crops, masks.",
        low=0,
    )
    dtype: str = field(
        "auto",
        "Type of activations and matrix products. Parameters, optimiser state, norm "
        'statistics, softmax and losses are float32 in any case. "bfloat16_products" '
        "rounds the operands of matrix products alone, which is the fast form on CPUs. "
        '"auto": bfloat16 on TPUs and GPUs, bfloat16_products on CPUs with AMX and '
        "AMD's with AVX512-BF16, float32 on others; a run keeps the type that it began "
        "with.",
        choices=DTYPES,
    )
    init_from: str = field(
        "",
        "Workdir or checkpoint of a run, or of converted weights, whose encoder, "
        "architecture included, is the start, and in pre-training the decoder, if it "
        'fits; "": from scratch, as config.model says.',
    )
    init_first_blocks: bool = field(
        False,
        "The checkpoint may have more blocks than config.model: take the first ones.",
    )
    duration: Duration = field("100 epochs", "How long to train.", unit="duration")
    mesh: Mesh = section(Mesh, "How devices share the work.")
    data: Data = section(Data, "What goes in.")
    optim: Optim = section(Optim, "How parameters are updated.")
    ema_decay: float = field(
        0.0,
        "Keep a moving average of the parameters, average = ema_decay * average + "
        "(1 - ema_decay) * parameters after each step; 0: none. The average is what "
        "is evaluated, and what predictions and fine-tuning load.",
        low=0,
        below=1,
    )
    log_every: Duration = field(
        "50 steps",
        "Interval of lines in metrics.jsonl.",
        unit="duration",
        harmless=True,
    )
    eval_every: Duration = field(
        "10 epochs",
        "Interval of evaluations, each of which saves a checkpoint.",
        unit="duration",
    )
    checkpoint_every: Duration = field(
        "1 epochs",
        "Interval of checkpoints between evaluations.",
        unit="duration",
        harmless=True,
    )
    keep_checkpoints: int = field(
        3, "Newest checkpoints to keep, beside the best one.", low=1, harmless=True
    )
    profile: Profile = section(Profile, "A trace of some steps.")
    bench: Bench = section(Bench, "What benchmarks measure.")
    wandb: bool = field(
        False, "Send metrics to Weights & Biases (pip install wandb).", harmless=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Base):
    """Pre-training; the defaults are the official ViT-B/16 run."""

    model: ViT | Swin = section(ViT, "The encoder.")
    mask: Mask = section(Mask, "What is hidden.")
    target: Target = section(Target, "What is predicted.")
    loss: Loss = section(Loss, "How errors count.")
    decoder: Decoder = section(Decoder, "What predicts the target.")
    probe: Probe = section(Probe, "What features are worth meanwhile.")
    pictures: int = field(
        8, "Reconstructions drawn at each evaluation.", low=0, harmless=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downstream(Base):
    """Fields of runs that start from a pre-trained encoder, or from scratch."""

    # The fields of an encoder, and those of a head.
    model: Any
    freeze_encoder: bool = field(
        False,
        "Leave the encoder as it is, without drop path; the head and its norm learn "
        "alone.",
    )
    optim: FinetuneOptim = section(FinetuneOptim, "How parameters are updated.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Downstream):
    """Fine-tuning; the defaults are the official ViT-B/16 run."""

    mode: str = field("finetune", 'As in pre-training; here "finetune".', choices=MODES)
    data: FinetuneData = section(FinetuneData, "What goes in.")
    augment: Augment = section(Augment, "What else happens to training images.")
    # The fields of an encoder and those of Head.
    model: Any = section(
        classifier(ViT),
        "The encoder and its head.",
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        final_norm=False,
        init_cut=0.0,
    )
    label_smoothing: float = field(
        0.1,
        'Share of each target that is spread over all classes; with loss="sigmoid" '
        "over both answers.",
        low=0,
        high=1,
    )
    loss: str = field(
        "softmax",
        'What is learned: "softmax", one class an image; "sigmoid", any number of '
        'classes; "l1" or "l2", numbers, by their absolute or squared errors.',
        choices=LOSSES,
    )
    targets: Targets = section(Targets, "What is learned but one class an image.")
    pictures: int = field(
        8,
        "Augmented training images drawn at the start, beside their originals.",
        low=0,
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Downstream):
    """Semantic segmentation; the defaults are BEiT's UperNet with a ViT-B/16."""

    mode: str = field("segment", 'As in pre-training; here "segment".', choices=MODES)
    duration: Duration = field("160000 steps", "How long to train.", unit="duration")
    eval_every: Duration = field(
        "16000 steps",
        "Interval of evaluations, each of which saves a checkpoint.",
        unit="duration",
    )
    checkpoint_every: Duration = field(
        "2000 steps",
        "Interval of checkpoints between evaluations.",
        unit="duration",
        harmless=True,
    )
    data: SegmentData = section(SegmentData, "What goes in.")
    # The fields of an encoder and those of SegmentHead.
    model: Any = section(
        segmenter(ViT),
        "The encoder and its head.",
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        final_norm=False,
        init_cut=0.0,
    )
    optim: SegmentOptim = section(SegmentOptim, "How parameters are updated.")
    auxiliary_weight: float = field(
        0.4, "Weight of the auxiliary head's loss; 0: it learns nothing.", low=0
    )
    pictures: int = field(
        8,
        "Held-out images drawn at each evaluation, with true and predicted masks.",
        low=0,
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribe(Downstream):
    """Speech to text: an encoder and a CTC head learn from transcripts."""

    mode: str = field(
        "transcribe", 'As in pre-training; here "transcribe".', choices=MODES
    )
    data: TranscribeData = section(TranscribeData, "What goes in.")
    text: Text = section(Text, "How transcripts are normalised.")
    augment: SpecAugment = section(SpecAugment, "What training hides of a spectrogram.")
    model: ViT = section(
        ViT,
        "The encoder.",
        patch_size=(80, 2),
        use_sincos_pos_emb=True,
        use_shared_rel_pos_bias=False,
    )
    beam_width: int = field(
        1,
        "Texts that decoding keeps a frame, in prefix beam search; 1: the most "
        "probable class of each frame, which is faster.",
        low=1,
        harmless=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Pre-training, then fine-tuning from scratch and from what was learned.

    finetune: classification, or segmentation.
    """

    mode: str
    pretrain: Pretrain
    finetune: Finetune | Segment


# One run, and what a config file describes.
RunConfig = Pretrain | Finetune | Segment | Transcribe
Config = RunConfig | Compare


# ---- From and to ConfigDicts ---------------------------------------------------------


def config_dict(config: Any) -> ConfigDict:
    """Return the ConfigDict of a group of fields; config files change and return it."""
    return ConfigDict(to_dict(config))


def parse(config: Mapping[str, Any] | ConfigDict, *, stored: bool = False) -> Config:
    """Return the typed form of a config; fields that are missing get their defaults.

    stored: the config is one that a run recorded, maybe of another release: fields that
    are unknown today are dropped, and values are not checked again.
    raises: UserError for an unknown field and for values that mean nothing.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    mode = values.get("mode")
    if mode not in MODES:
        raise UserError(
            f"config.mode={mode!r}: expected one of {MODES}."
            + did_you_mean(str(mode), MODES)
        )
    if (mode == "compare") != ("pretrain" in values) and not mode.startswith("bench"):
        kind = "a comparison" if "pretrain" in values else "no comparison"
        raise UserError(
            f"config.mode={mode!r}: this config is {kind}. Leave its mode as it is."
        )
    if "pretrain" in values:
        return _parse_compare(mode, values, stored)
    return _parse_run(_kind(values, "config"), values, "config", stored)


def _parse_compare(mode: str, values: Mapping[str, Any], stored: bool) -> Compare:
    path = "config.finetune"
    cls = _kind(values["finetune"], path)
    if cls not in (Finetune, Segment):
        raise UserError(
            f"{path}.mode={cls().mode!r}: a comparison is one of classification or "
            "segmentation. Expected 'finetune' or 'segment'."
        )
    compare = Compare(
        mode=mode,
        pretrain=_parse_run(Pretrain, values["pretrain"], "config.pretrain", stored),
        finetune=_parse_run(cls, values["finetune"], path, stored),
    )
    loss = getattr(compare.finetune, "loss", "softmax")
    if loss != "softmax":
        raise UserError(
            f"{path}.loss={loss!r}: a comparison of classifiers is one of top-1 "
            "accuracies. Expected 'softmax'."
        )
    return compare


def _kind(values: Mapping[str, Any], path: str) -> type:
    """Return the class of a run's config, by its mode and its fields."""
    mode = values.get("mode")
    kinds = [cls for cls, marks in _MARKS.items() if marks & values.keys()]
    named = {cls().mode: cls for cls in _MARKS}
    if len(kinds) == 1 and mode in named and kinds[0] is not named[mode]:
        raise UserError(
            f"{path}.mode={mode!r}: this config is one of {_KINDS[kinds[0]]}. Leave "
            "its mode as it is, or choose a config of the other mode."
        )
    return named.get(mode) or next(iter(kinds), Finetune)


# Fields that a config of one kind alone has.
_MARKS: dict[type, set[str]] = {
    Pretrain: {"mask", "target"},
    Finetune: {"label_smoothing", "probabilities"},  # the second one of old runs
    Segment: {"auxiliary_weight"},
    Transcribe: {"text", "beam_width"},
}
_KINDS = {
    Pretrain: "pre-training",
    Finetune: "fine-tuning",
    Segment: "segmentation",
    Transcribe: "speech to text",
}


def single(config: Config) -> RunConfig:
    """Return the config itself, or a comparison's pre-training."""
    return config.pretrain if isinstance(config, Compare) else config


def with_batch_size(config: Any, batch_size: int) -> Any:
    """Return a run's config with another batch size."""
    data = dataclasses.replace(config.data, batch_size=batch_size)
    return dataclasses.replace(config, data=data)


def _parse_run(cls: type, values: Mapping[str, Any], path: str, stored: bool) -> Any:
    rest = dict(values)
    if stored and "probabilities" in rest:  # its name until 2026-11
        rest.setdefault("loss", rest["probabilities"])
    model = rest.pop("model", {})
    if not isinstance(model, Mapping):
        raise UserError(f"{path}.model={model!r}: expected fields, not a value.")
    encoder = model.get("name", "vit")
    if not isinstance(encoder, str) or encoder not in ENCODERS:
        raise UserError(
            f"{path}.model.name={encoder!r}: expected one of {sorted(ENCODERS)}."
            + did_you_mean(str(encoder), ENCODERS)
        )
    fields = ENCODERS[encoder]
    if cls is Finetune:
        fields = classifier(fields)
    elif cls is Segment:
        fields = segmenter(fields)
    parsed = parse_group(cls, rest, path, stored)
    if type(parsed.model) is fields:  # whose defaults are those of the mode
        model = to_dict(parsed.model) | dict(model)
    run = dataclasses.replace(
        parsed, model=parse_group(fields, model, f"{path}.model", stored)
    )
    if not stored:
        check(run, path)
    return run


def check(run: RunConfig, path: str) -> None:
    """Raise UserError for values that do not go together."""
    data = run.data
    _check_data(data, path)
    mask = getattr(run, "mask", Mask())
    if mask.span[0] > mask.span[1]:
        raise UserError(
            f"{path}.mask.span={mask.span!r}: expected shortest and longest length."
        )
    if (
        isinstance(run, Pretrain)
        and data.dtype not in ("auto", "uint8")
        and run.loss.kind == "bins"
    ):
        raise UserError(
            f"{path}.loss.kind='bins' sorts values 0..255: expected data.dtype='uint8'."
        )
    model: object = run.model
    if isinstance(model, Swin) and isinstance(model, Head) and model.pool != "mean":
        raise UserError(
            f"{path}.model.pool={model.pool!r}: a Swin has no class token, expected "
            "'mean'."
        )
    if isinstance(run, Finetune):
        _check_targets(run, path)
    if isinstance(run, Pretrain) and run.probe.temperature == 0:
        raise UserError(f"{path}.probe.temperature=0: expected more than 0.")
    if isinstance(run, Transcribe):
        _check_tokens(run, path)


def _check_targets(run: Finetune, path: str) -> None:
    """Raise UserError where what is learned and how do not go together."""
    targets = run.targets
    if run.loss == "softmax" and targets != Targets():
        raise UserError(
            f"{path}.targets is of several classes or numbers, but {path}.loss="
            "'softmax' learns one class an image: expected loss='sigmoid', 'l1' or "
            "'l2', or no targets."
        )
    if len(targets.mean) != len(targets.std) or 0 in targets.std:
        raise UserError(
            f"{path}.targets.mean={targets.mean} and std={targets.std}: expected one "
            "number of each for every target, std above 0, or () to measure them."
        )
    of_classes = {
        "label_smoothing": run.label_smoothing,
        "augment.mixup_alpha": run.augment.mixup_alpha,
        "augment.cutmix_alpha": run.augment.cutmix_alpha,
    }
    if run.loss in REGRESSION and any(of_classes.values()):
        flags = " ".join(f"--{path}.{name}=0" for name in of_classes)
        raise UserError(
            f"{path}.loss={run.loss!r} learns numbers, which cannot be smoothed or "
            f"mixed as classes are: expected {flags}."
        )


def _check_data(data: Data, path: str) -> None:
    """Raise UserError for values of config.data that do not go together."""
    if data.mean or data.std:
        for name in ("mean", "std"):
            if len(getattr(data, name)) != data.channels:
                raise UserError(
                    f"{path}.data.{name}={getattr(data, name)!r}: expected one number "
                    f"for each of {path}.data.channels={data.channels}, or () as mean "
                    "and std to measure them."
                )
    if 0 in data.std:
        raise UserError(f"{path}.data.std={data.std!r}: expected more than 0.")
    if data.bands and len(data.bands) != data.channels:
        raise UserError(
            f"{path}.data.bands={data.bands!r}: expected as many names as "
            f"{path}.data.channels={data.channels}."
        )
    if any(band >= data.channels for band in data.display_bands):
        raise UserError(
            f"{path}.data.display_bands={data.display_bands!r}: expected numbers below "
            f"{path}.data.channels={data.channels}, counted from 0."
        )
    if len(data.nodata) > 1:
        raise UserError(f"{path}.data.nodata={data.nodata!r}: expected one value.")
    if data.nodata and data.value_range:
        raise UserError(
            f"{path}.data.nodata={data.nodata!r}, but value_range={data.value_range!r} "
            "makes 8-bit pixels, which have no value for missing ones: expected "
            f'{path}.data.normalization="range" with clip={data.value_range!r} instead.'
        )
    _check_normalization(data, path)
    if data.value_range and (
        len(data.value_range) != 2 or data.value_range[0] >= data.value_range[1]
    ):
        raise UserError(
            f"{path}.data.value_range={data.value_range!r}: expected the values that "
            "become 0 and 255, such as (0, 4095), or ()."
        )
    if data.value_range and data.dtype not in ("auto", "uint8"):
        raise UserError(
            f"{path}.data.value_range={data.value_range!r} makes 8-bit pixels, but "
            f"data.dtype={data.dtype!r}: expected 'uint8', or value_range=()."
        )
    if data.view == "text" and data.flip:
        raise UserError(f"{path}.data.flip=True mirrors text: set it to False.")
    if len(data.crop_scale) not in (0, 2):
        raise UserError(
            f"{path}.data.crop_scale={data.crop_scale!r}: expected smallest and "
            "largest share of the area, or () for the whole image."
        )
    if data.num_threads == 0:
        raise UserError(
            f"{path}.data.num_threads=0: expected 1 or more, or -1 for as many as the "
            "machine has CPUs for."
        )
    if data.eval_crop == 0:
        raise UserError(f"{path}.data.eval_crop=0: expected more than 0, up to 1.")


def _check_tokens(run: Transcribe, path: str) -> None:
    """Raise UserError where tokens are not pieces of time, or not of any number."""
    model = run.model
    if model.name != "vit":
        raise UserError(
            f"{path}.model.name={model.name!r}: expected 'vit', whose tokens may be "
            "pieces of time, for speech to text."
        )
    bands, frames = run.data.image_size
    if model.patch_size[0] != bands or frames % model.patch_size[1]:
        raise UserError(
            f"{path}.model.patch_size={model.patch_size}: expected the height of "
            f"{path}.data.image_size={run.data.image_size}, so that a token is a piece "
            "of time, and a divisor of its width, such as (80, 2) of (80, 1600)."
        )
    for name in ("use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"):
        if getattr(model, name):
            raise UserError(
                f"{path}.model.{name}=True: expected False in speech to text, whose "
                "utterances have any length. use_sincos_pos_emb=True has positions for "
                "all of them; pre-train with it."
            )


def _check_normalization(data: Data, path: str) -> None:
    kind, clip = data.normalization, data.clip
    takes_clip = kind in ("clipped", "percentiles", "range")
    is_pair = len(clip) == 2 and clip[0] < clip[1]
    if (clip and not (takes_clip and is_pair)) or (kind == "range" and not clip):
        expected = "lowest and highest value" if takes_clip else "()"
        raise UserError(
            f"{path}.data.clip={clip!r}: expected {expected} with "
            f"data.normalization={kind!r}."
        )


def harmless(config: RunConfig) -> set[str]:
    """Return the names of fields that have no effect on what a run learns."""
    return {name for name, each, _, _ in leaves(config) if meaning(each).harmless}


def num_steps(config: RunConfig, name: str, num_examples: int) -> int:
    """Return the duration in a field, such as "optim.warmup", in steps."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return durations.num_steps(value, config.data.batch_size, num_examples)
