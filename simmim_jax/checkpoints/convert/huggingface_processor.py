"""Image processors of transformers: preprocessor_config.json and config.data.

They resize, cut out the centre, rescale and normalise, each step with a switch. Their
crops begin at a row rounded down, `eval_center="floor"`.
"""

from collections.abc import Mapping
from typing import Any

from simmim_jax.checkpoints.convert import settings
from simmim_jax.checkpoints.convert.overrides import own_preparation
from simmim_jax.checkpoints.convert.settings import Settings

_FILTERS = {  # Pillow's numbers
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_HALF = (0.5, 0.5, 0.5)
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "default_to_square": False,
}
# Defaults of each class that differ from ViT's, by its name without "ImageProcessor".
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "Beit": {"resample": 3},
    "DeiT": {"resample": 3, "size": 256, "do_center_crop": True},
    "Bit": _CLIP,
    "CLIP": _CLIP,
}
_VIT: dict[str, Any] = {
    "image_mean": _HALF,
    "image_std": _HALF,
    "resample": 2,
    "size": 224,
    "do_center_crop": False,
    "crop_size": 224,
    "default_to_square": True,
}
_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")
# Settings without an effect on the pixels of photographs.
_IGNORED = (
    "processor_class", "_processor_class", "do_convert_rgb", "do_reduce_labels",
    "reduce_labels", "data_format", "input_data_format", "device", "return_tensors",
    "disable_grouping", "image_seq_length", "_valid_processor_keys",
)  # fmt: skip


def data_fields(processor: Settings, model_type: str) -> dict[str, Any]:
    """Return fields of config.data that give the pixels of an image processor.

    model_type: of transformers; old files do not name the processor. Raises UserError
    for a setting that we cannot follow.
    """
    default = _VIT | _PROCESSORS[_name(processor, model_type)]
    square = processor.take(
        "default_to_square", settings.flag, default["default_to_square"]
    )
    size = processor.take("size", lambda x: _size(x, square), None)
    crop = processor.take("crop_size", lambda x: _size(x, True), None)
    size = size or _size(default["size"], square)
    crop = crop or _size(default["crop_size"], True)
    filters = settings.one_of(_FILTERS)
    data = {
        "interpolation": processor.take(
            "resample", filters, _FILTERS[default["resample"]]
        )
    }
    processor.expect(
        "do_resize", True, reason="we resize every image to data.image_size"
    )
    if processor.take("do_center_crop", settings.flag, default["do_center_crop"]):
        # Only in files that we wrote: `size` is rounded.
        share = processor.take("crop_pct", settings.share_or_zero, None)
        data |= _centre_crop(processor, size, crop, share)
    elif "shortest_edge" in size:
        raise processor.refusal("size", size, "without a crop, images keep their shape")
    else:
        data |= {"image_size": (size["height"], size["width"]), "eval_crop": 1.0}
    data |= _normalisation(processor, default)
    processor.expect("do_pad", False, reason="we do not pad")
    processor.ignore([*_IGNORED, "pad_size"])
    processor.finish()
    return data


def processor_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessor_config.json for config.data with square images."""
    height, width = data["image_size"]
    share, fit = data["eval_crop"], data.get("eval_fit", "official")
    size = {"height": height, "width": width}
    covers = fit == "cover" or (fit == "official" and share < 1)
    crops = covers or share < 1
    resized = int(height / share)
    kind = ("Bit" if covers else "Beit") if crops else "ViT"
    filters = {name: number for number, name in _FILTERS.items()}
    processor = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resized}
        if covers
        else {"height": resized, "width": resized},
        "resample": filters[data["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": data["mean"],
        "image_std": data["std"],
        "do_convert_rgb": data["channels"] == 3,
    }
    if crops:
        # crop_pct is for our reader: the two sizes are rounded.
        processor |= {"do_center_crop": True, "crop_size": size, "crop_pct": share}
    return processor


def lost_settings(data: Mapping[str, Any]) -> list[str]:
    """Return what an image processor cannot hold."""
    lost = []
    cropped = data["eval_crop"] < 1 or data.get("eval_fit") == "cover"
    if cropped and data.get("eval_center", "round") == "round":
        lost.append(
            "transformers rounds down where a crop begins, data.eval_center='round' "
            "does not: some images are cropped one pixel earlier"
        )
    if own := own_preparation(data):
        lost.append(f"image processors are for photographs: prepare {own} yourself")
    return lost


def crop_share(size: int, resized: int) -> float:
    """Return size / resized, such that int(size / share) is `resized`."""
    share = size / resized
    return share if int(size / share) == resized else size / (resized + 0.5)


def _name(processor: Settings, model_type: str) -> str:
    """Return the key of _PROCESSORS; old files call processors feature extractors."""
    default = "Beit" if model_type == "beit" else "ViT"
    found = processor.take("feature_extractor_type", settings.text, default)
    found = given = processor.take("image_processor_type", settings.text, found)
    for suffix in _SUFFIXES:
        found = found.removesuffix(suffix)
    if found not in _PROCESSORS:
        raise processor.refusal(
            "image_processor_type", given, f"we know those of {list(_PROCESSORS)}"
        )
    return found


def _size(value: Any, square: bool) -> dict[str, int]:
    """A height and width, or a shortest edge."""
    if not isinstance(value, Mapping):
        if isinstance(value, int) and not square:
            return {"shortest_edge": settings.size(value)}
        height, width = settings.pair(value)
        return {"height": height, "width": width}
    if set(value) not in ({"height", "width"}, {"shortest_edge"}):
        raise ValueError("height and width, or shortest_edge")
    return {name: settings.size(length) for name, length in value.items()}


def _centre_crop(
    processor: Settings,
    size: Mapping[str, int],
    crop: Mapping[str, int],
    share: float | None,
) -> dict[str, Any]:
    """Return fields for an image that is resized to `size` and then cropped."""
    if "shortest_edge" in crop:
        raise processor.refusal("crop_size", crop, "a crop needs a height and a width")
    image_size = height, width = crop["height"], crop["width"]
    covers = "shortest_edge" in size
    rows = size["shortest_edge"] if covers else size["height"]
    columns = rows if covers else size["width"]
    share = share or crop_share(height, rows)
    if covers and height != width:
        raise processor.refusal("crop_size", crop, "we crop squares to a shortest_edge")
    if (int(height / share), int(width / share)) != (rows, columns) or share > 1:
        raise processor.refusal(
            "crop_size", crop, f"we crop the same share of both sides, at most {size}"
        )
    data = {"image_size": image_size, "eval_crop": share}
    if covers or share < 1:
        data["eval_center"] = "floor"
    if covers and share == 1:
        data["eval_fit"] = "cover"
    elif not covers and share < 1:
        data["eval_fit"] = "squash"
    return data


def _normalisation(processor: Settings, default: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and std of pixels in 0..1 for rescaling and normalisation."""
    rescale = processor.take("do_rescale", settings.flag, True)
    factor = processor.take("rescale_factor", settings.positive, 1 / 255)
    normalise = processor.take("do_normalize", settings.flag, True)
    mean = processor.take("image_mean", settings.numbers, default["image_mean"])
    std = processor.take("image_std", settings.deviations, default["image_std"])
    if not normalise:
        mean, std = (0.0,), (1.0,)
    # (factor * x - mean) / std, with x in 0..255, as (x / 255 - mean') / std'.
    scale = 255 * factor if rescale else 255.0
    return {
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
    }
