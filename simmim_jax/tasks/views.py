"""Modalities: the views that config.data.view names, one for training and evaluation.

A new modality is a `View` of its own and one `register` call.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.config.schema import Data, SegmentData
from simmim_jax.data.codecs.audio import Segment
from simmim_jax.data.codecs.base import Decoding, Raster
from simmim_jax.data.sources import text
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.format import Format
from simmim_jax.data.survey.inspect import kind
from simmim_jax.data.survey.sample import Values, decoded_by, indices
from simmim_jax.data.views.base import View
from simmim_jax.data.views.image import CenterCropView, ImageView, RandomCropView
from simmim_jax.data.views.masked import MaskedView
from simmim_jax.data.views.spectrogram import RandomSpectrogramView, SpectrogramView
from simmim_jax.data.views.text import TextView, missing_glyphs
from simmim_jax.errors import UserError, did_you_mean

_IMAGE, _MASKS, TEXT = "image", "masks", "text"
# Examples that a run looks at for its first line: images in milliseconds, lines within
# a second.
_IMAGES_LOOKED_AT, _LINES_LOOKED_AT = 4, 10_000
# Characters without a glyph that a run prints.
_GLYPHS_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Modality:
    """How config.data becomes the views of a modality.

    formats: of data sets, tried before all others; describe: what a source has, in a
    few words.
    """

    train: Callable[[Data], View]
    evaluate: Callable[[Data], View]
    formats: tuple[Format, ...] = ()
    describe: Callable[[Data, Source], str] = lambda data, source: ""


def train_view(data: Data) -> View:
    """Return the view of training batches."""
    return _modality(data).train(data)


def eval_view(data: Data) -> View:
    """Return the view of evaluation and prediction."""
    return _modality(data).evaluate(data)


def formats(data: Data) -> tuple[Format, ...]:
    """Return the formats of data sets that a modality adds."""
    return _modality(data).formats


def describe(data: Data, source: Source) -> str:
    """Return what a source has, in a few words; "" for nothing of note."""
    return _modality(data).describe(data, source)


def content(data: Data, item: Any) -> Any:
    """Return what a view takes: an item itself, or the bytes of the file it names.

    item: a path, bytes, a Segment of a sound, or an array, of JAX or PyTorch as well;
    with text, a line.
    raises: OSError for a file that cannot be read, UserError for another type.
    """
    is_line = data.view == TEXT and isinstance(item, str)
    if isinstance(item, str | Path) and not is_line:
        return Path(item).read_bytes()
    if isinstance(item, str | bytes | Segment | np.ndarray):
        return item
    if not hasattr(item, "__dlpack__"):
        raise UserError(
            f"an image is of type {type(item).__name__}: expected a path, the bytes of "
            "a file or an array, such as np.asarray(image.convert('RGB')) of Pillow."
        )
    return np.asarray(item)


def check_several(data: Data, images: Any) -> None:
    """Raise UserError for one image where a sequence of them is expected."""
    if isinstance(images, str | bytes | Path):
        raise UserError(
            f"images={images!r:.80} is one: expected a list of images. For a folder, "
            "list its files, or use `simmim embed` or `simmim predict`."
        )
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) == 3 and shape[2] == data.channels:
        raise UserError(
            f"images is an array of {list(shape)}, one image: expected [n, h, w, c], "
            "such as images[None]."
        )


def unmasked_view(data: Data) -> View:
    """Return the view of prediction: that of evaluation, of images without masks."""
    view = eval_view(data)
    return view.image if isinstance(view, MaskedView) else view


def window_view(data: SegmentData) -> MaskedView:
    """Return the view of windows, which are decoded and have their size already."""
    cut = dataclasses.replace(
        data, bands=(), value_range=(), level=0, eval_crop=1.0, eval_fit="official"
    )
    return _masked(_center_crops, cut)


def values_of(data: Data) -> Values:
    """Return what reads the values of an example: those that are measured.

    They are an image's as decoded; of other modalities, what evaluation hands to a
    batch as its first array.
    """
    if data.view in (_IMAGE, _MASKS):
        return decoded_by(decoding_of(data))
    view = eval_view(data)
    name, spec = next(iter(view.spec.items()))

    def values(example: Mapping[str, Any]) -> Raster:
        array = view(dict(example), np.random.default_rng(0))[name]
        return Raster(np.asarray(array, spec.dtype), nodata=view.nodata)

    return values


def register(name: str, modality: Modality) -> None:
    """Add a modality; config.data.view chooses it by name."""
    _MODALITIES[name] = modality


def _modality(data: Data) -> Modality:
    if data.view not in _MODALITIES:
        raise UserError(
            f"config.data.view={data.view!r}: expected one of {sorted(_MODALITIES)}, "
            "or a name registered by simmim_jax.tasks.views.register."
            + did_you_mean(data.view, _MODALITIES)
        )
    return _MODALITIES[data.view]


def _random_crops(data: Data) -> ImageView:
    if not data.crop_scale:
        return ImageView(
            size=data.image_size,
            decoding=decoding_of(data),
            interpolation=data.interpolation,
            dtype=data.dtype,
        )
    return RandomCropView(
        size=data.image_size,
        decoding=decoding_of(data),
        interpolation=data.interpolation,
        dtype=data.dtype,
        scale=(data.crop_scale[0], data.crop_scale[1]),
        ratio=data.crop_ratio,
        fast=data.fast_decode,
    )


def _center_crops(data: Data) -> ImageView:
    return CenterCropView(
        size=data.image_size,
        decoding=decoding_of(data),
        interpolation=data.interpolation,
        dtype=data.dtype,
        crop_fraction=data.eval_crop,
        fit=data.eval_fit,
        center=data.eval_center,
        fill=mean_pixel(data),
    )


def _masked(view: Callable[[Data], ImageView], data: Data) -> MaskedView:
    """Return the view of an image and its mask, which `view` crops alike."""
    if not isinstance(data, SegmentData):
        raise UserError(
            f"config.data.view={data.view!r} is for config.mode='segment': expected "
            f"{_IMAGE!r}."
        )
    image = view(data)
    mask = dataclasses.replace(
        image, decoding=Decoding(channels=1), interpolation="nearest", dtype="uint16"
    )
    if isinstance(mask, CenterCropView):
        mask = dataclasses.replace(mask, fill=(data.ignore_index,))
    return MaskedView(
        image=image,
        mask=mask,
        num_classes=data.num_classes,
        ignore_index=data.ignore_index,
    )


def decoding_of(data: Data) -> Decoding:
    """Return how files become arrays."""
    return Decoding(
        channels=data.channels,
        bands=data.bands,
        fill_bands=data.fill_bands,
        nodata=data.nodata[0] if data.nodata else None,
        value_range=(data.value_range[0], data.value_range[1])
        if data.value_range
        else None,
        level=data.level,
        max_pixels=data.max_image_pixels,
    )


def mean_pixel(data: Data) -> tuple[float, ...]:
    """Return the pixel that the model sees as 0."""
    mean = data.mean
    if data.normalization == "decibels":
        mean = tuple(10 ** (value / 10) for value in mean)
    elif data.dtype == "uint8":
        mean = tuple(255 * value for value in mean)
    if data.dtype == "float32":
        return mean
    limits = np.iinfo(data.dtype)
    return tuple(min(max(round(value), limits.min), limits.max) for value in mean)


def _describe_images(data: Data, source: Source) -> str:
    del data
    return kind(source, _IMAGES_LOOKED_AT)


# ---- Speech -------------------------------------------------------------------------


def _random_spectrograms(data: Data) -> View:
    return RandomSpectrogramView(size=_spectrogram_size(data))


def _central_spectrograms(data: Data) -> View:
    return SpectrogramView(size=_spectrogram_size(data))


def _spectrogram_size(data: Data) -> tuple[int, int]:
    """Return bands and frames; UserError for fields that make no sense of sound."""
    for name, value, expected in (
        ("channels", data.channels, 1),
        ("flip", data.flip, False),  # it would play backwards
    ):
        if value != expected:
            raise UserError(
                f"config.data.{name}={value!r}: expected {expected} with "
                "config.data.view='speech'."
            )
    return data.image_size


# ---- Text ----------------------------------------------------------------------------


def _lines(random: bool, data: Data) -> View:
    return TextView(
        size=data.image_size, layout=data.text_layout, font=data.font, random=random
    )


def _describe_lines(data: Data, source: Source) -> str:
    """Return how many characters of a sample of lines have no glyph, and which."""
    lines = (source[i]["image"] for i in indices(len(source), _LINES_LOOKED_AT))
    missing, total = missing_glyphs(
        (line for line in lines if isinstance(line, str)), data.text_layout, data.font
    )
    if not missing:
        return ""
    shown = missing.most_common(_GLYPHS_SHOWN)
    listed = ", ".join(f"{c} (U+{ord(c):04X}) x {n:,}" for c, n in shown)
    more = ", ..." if len(missing) > len(shown) else ""
    return (
        f"{missing.total():,} of {total:,} characters have no glyph in the font and "
        f"are drawn as boxes: {listed}{more}"
    )


_MODALITIES = {
    _IMAGE: Modality(_random_crops, _center_crops, describe=_describe_images),
    "speech": Modality(_random_spectrograms, _central_spectrograms),
    _MASKS: Modality(
        functools.partial(_masked, _random_crops),
        functools.partial(_masked, _center_crops),
        describe=_describe_images,
    ),
    TEXT: Modality(
        functools.partial(_lines, True),
        functools.partial(_lines, False),
        formats=text.FORMATS,
        describe=_describe_lines,
    ),
}
