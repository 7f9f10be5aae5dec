"""Batches of images, from options as flat as a config's."""

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.loader import pipeline
from simmim_jax.data.views.image import CenterCropView, ImageView, RandomCropView


def train_iterator(
    source,
    *,
    image_size,
    channels,
    scale,
    ratio,
    interpolation,
    fast_decode,
    **options,
):
    """The stream of random crops; with scale=None, of whole images."""
    fields = {
        "size": image_size,
        "decoding": Decoding(channels),
        "interpolation": interpolation,
    }
    view = ImageView(**fields)
    if scale is not None:
        view = RandomCropView(**fields, scale=scale, ratio=ratio, fast=fast_decode)
    return pipeline.train_iterator(source, view, **options)


def eval_batches(
    source, *, image_size, channels, crop_fraction, interpolation, **options
):
    """One pass over centre crops."""
    view = CenterCropView(
        size=image_size,
        decoding=Decoding(channels),
        interpolation=interpolation,
        crop_fraction=crop_fraction,
    )
    return pipeline.eval_batches(source, view, **options)
