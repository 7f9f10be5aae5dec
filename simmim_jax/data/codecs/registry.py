"""Decode images of any encoding; the content decides which, not the file name."""

import numpy as np

from simmim_jax.data.codecs.audio import is_sound
from simmim_jax.data.codecs.base import (
    BadImage,
    BandArray,
    Codec,
    Decoding,
    Raster,
    as_image,
    check_array_size,
    check_channels,
    to_range,
)
from simmim_jax.data.codecs.dicom import BARE_DICOM, DICOM
from simmim_jax.data.codecs.image import IMAGE
from simmim_jax.data.codecs.nifti import NIFTI_1, NIFTI_2
from simmim_jax.data.codecs.npy import NPY
from simmim_jax.data.codecs.tiff import TIFF
from simmim_jax.errors import UserError, did_you_mean

# The first match decodes. IMAGE matches everything: Pillow tells its formats apart.
CODECS = (NPY, DICOM, BARE_DICOM, NIFTI_1, NIFTI_2, TIFF, IMAGE)
_registered: list[Codec] = []


def register_codec(codec: Codec) -> Codec:
    """Add a codec, tried before all others; one of the same name is replaced.

    Worker processes import the main module again, and no other: call this at its top
    level or in a module that it imports.
    """
    _registered[:] = [codec, *(c for c in _registered if c.name != codec.name)]
    return codec


def registered_codecs() -> tuple[Codec, ...]:
    """Return what `register_codec` has added, to register it in another process."""
    return tuple(_registered)


def codec_of(data: bytes) -> Codec:
    """Return the codec that decodes these bytes."""
    matching = (c for c in (*_registered, *CODECS) if c.matches(data))
    return next(matching)  # IMAGE matches all bytes


def read(data: bytes | np.ndarray, decoding: Decoding) -> Raster:
    """Decode an image, with the names and the nodata value of its file.

    data: an encoded image, or an array [h, w, c] or [h, w] of numbers, which may be a
    BandArray.
    raises: BadImage if the bytes are not a usable image, or one that is too large;
    UserError for a wrong dtype or number of channels.
    """
    if isinstance(data, str):
        raise UserError(
            f"An example is text, {data[:40]!r}: expected an image. Set "
            "--config.data.view=text to draw lines; open_source reads files."
        )
    if is_sound(data):
        raise BadImage(
            "not an image",
            "An example is a sound: set --config.data.view=speech to train on its "
            "spectrogram, as --config=speech:pretrain does.",
        )
    if isinstance(data, np.ndarray):
        pixels = as_image(np.asarray(data), "An array")
        raster = Raster(pixels)
        if isinstance(data, BandArray):
            raster = Raster(pixels, data.bands, data.nodata)
        check_array_size(raster.pixels, decoding.max_pixels)
    else:
        raster = codec_of(data).decode(data, decoding)
    if decoding.bands:
        raster = _chosen(raster, decoding)
    check_channels(raster.pixels, decoding.channels, "An image")
    if decoding.nodata is not None and raster.nodata not in (None, decoding.nodata):
        raster = _marked(raster, decoding.nodata)
    if decoding.value_range:
        mapped = to_range(raster.pixels, decoding.value_range, raster.nodata)
        raster = Raster(mapped, raster.bands)
    return raster


def decode(data: bytes | np.ndarray, decoding: Decoding) -> np.ndarray:
    """Return the pixels of `read`, [h, w, c]; a fitting array is returned unchanged."""
    return read(data, decoding).pixels


def _chosen(raster: Raster, decoding: Decoding) -> Raster:
    """Return the channels with the wanted names, in their order."""
    names = decoding.bands
    if not raster.bands:
        raise UserError(
            f"bands={names}, but an image names none of its "
            f"{raster.pixels.shape[2]} bands: remove --config.data.bands."
        )
    missing = [name for name in names if name not in raster.bands]
    if missing and (not decoding.fill_bands or len(missing) == len(names)):
        raise UserError(
            f"bands={names}, but an image has no band {missing[0]!r}: it has "
            f"{', '.join(raster.bands)}." + did_you_mean(missing[0], raster.bands)
        )
    if missing:
        return _filled(raster, decoding)
    if names == raster.bands:
        return raster
    places = [raster.bands.index(name) for name in names]
    return Raster(raster.pixels[:, :, places], names, raster.nodata)


def _filled(raster: Raster, decoding: Decoding) -> Raster:
    """Return the wanted channels; those that are missing have no measurement."""
    pixels, names = raster.pixels, decoding.bands
    mark = decoding.nodata if raster.nodata is None else raster.nodata
    if mark is None and pixels.dtype != np.float32:
        raise UserError(
            f"An image has the bands {', '.join(raster.bands)} of bands={names}, and "
            f"{pixels.dtype} has no value for pixels without a measurement: choose one "
            "with --config.data.nodata."
        )
    value = np.nan if mark is None else mark
    filled = np.full((*pixels.shape[:2], len(names)), value, pixels.dtype)
    for place, name in enumerate(names):
        if name in raster.bands:
            filled[:, :, place] = pixels[:, :, raster.bands.index(name)]
    return Raster(filled, names, raster.nodata)


def _marked(raster: Raster, nodata: float) -> Raster:
    """Return an image with `nodata` in place of its own value for it.

    Integers that do not have this value become wider.
    """
    pixels = raster.pixels
    dtype = pixels.dtype
    if dtype.kind in "iu" and nodata == int(nodata):
        dtype = np.promote_types(dtype, np.min_scalar_type(int(nodata)))
    marked = np.where(pixels == raster.nodata, np.asarray(nodata, dtype), pixels)
    return Raster(marked.astype(dtype, copy=False), raster.bands, nodata)
