"""Modalities: the views that config.data.view names, one for training and evaluation.

A new modality is a `View` of its own and one `register` call.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simmim_jax.config.schema import Data
from simmim_jax.data.codecs.base import Decoding, Raster
from simmim_jax.data.survey.sample import Values, decoded_by
from simmim_jax.data.views.base import View
from simmim_jax.data.views.image import CenterCropView, ImageView, RandomCropView
from simmim_jax.data.views.spectrogram import RandomSpectrogramView, SpectrogramView
from simmim_jax.errors import UserError, did_you_mean

_IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Modality:
    """How config.data becomes the views of a modality."""

    train: Callable[[Data], View]
    evaluate: Callable[[Data], View]


def train_view(data: Data) -> View:
    """Return the view of training batches."""
    return _modality(data).train(data)


def eval_view(data: Data) -> View:
    """Return the view of evaluation and prediction."""
    return _modality(data).evaluate(data)


def values_of(data: Data) -> Values:
    """Return what reads the values of an example: those that are measured.

    They are an image's as decoded; of other modalities, what evaluation hands to a
    batch as its first array.
    """
    if data.view == _IMAGE:
        return decoded_by(decoding_of(data))
    view = eval_view(data)
    name, spec = next(iter(view.spec.items()))

    def values(example: Mapping[str, Any]) -> Raster:
        array = view(dict(example), np.random.default_rng(0))[name]
        return Raster(np.asarray(array, spec.dtype))

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


def _random_crops(data: Data) -> View:
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


def _center_crops(data: Data) -> View:
    return CenterCropView(
        size=data.image_size,
        decoding=decoding_of(data),
        interpolation=data.interpolation,
        dtype=data.dtype,
        crop_fraction=data.eval_crop,
        fit=data.eval_fit,
        center=data.eval_center,
        fill=_mean_pixel(data),
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


def _mean_pixel(data: Data) -> tuple[float, ...]:
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


_MODALITIES = {
    _IMAGE: Modality(_random_crops, _center_crops),
    "speech": Modality(_random_spectrograms, _central_spectrograms),
}
