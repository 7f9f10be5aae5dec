"""Arrays of any number of bands, as pictures show them."""

import numpy as np
from einops import rearrange, repeat

from simmim_jax.config.schema import Data
from simmim_jax.monitoring.pictures import perceptual
from simmim_jax.tasks.values import normalization

# Pixels without data: a colour that neither grey levels nor photographs have.
NO_DATA = (255, 0, 255)
# What becomes black and white, in units of what the model sees, where nothing is
# clipped: two standard deviations about the mean.
_ENDS = (-2.0, 2.0)


def displayed(data: Data, images: np.ndarray) -> np.ndarray:
    """Return images [n h w c] as uint8 [n h w k], k of 1 grey or 3 colours.

    Photographs stay as they are. Of other values the bands config.data.display_bands
    are stretched alike in all images: one is drawn in viridis, whose steps look equal,
    and in grey if data.normalization is "range", as windows of CT are; two in the grey
    of their mean; three are red, green and blue, and more stand side by side, which
    makes pictures larger.
    """
    normalize = normalization(data)
    bands = _bands(data)
    is_photo = data.dtype == "uint8" and data.channels in (1, 3)
    if is_photo and data.normalization == "standard" and not data.display_bands:
        levels = images
    else:
        low, high = normalize.clip or _ENDS
        shares = np.asarray((normalize(images) - low) / (high - low))
        levels = np.rint(255 * shares[..., bands].clip(0, 1)).astype(np.uint8)
        if len(bands) == 1 and data.normalization != "range" and data.view != "text":
            levels = perceptual(levels[..., 0])
    if len(bands) == 2:
        levels = levels.mean(-1, keepdims=True).astype(levels.dtype)
    if len(bands) > 3:
        levels = _side_by_side(levels)
    if data.view == "text" or (not data.nodata and data.dtype != "float32"):
        return levels  # padding is as white as paper
    valid = normalize.valid(images)
    if levels.shape[-1] == 1:
        levels = repeat(levels, "n h w 1 -> n h w c", c=3)
    if valid is None:
        return levels
    shown = np.asarray(valid)[..., bands]
    if len(bands) > 3:
        shown = _side_by_side(shown)
    else:
        shown = np.logical_and.reduce(shown, axis=-1, keepdims=True)
    return np.where(shown, levels, np.array(NO_DATA, levels.dtype))


def displayed_masks(data: Data, masks: np.ndarray) -> np.ndarray:
    """Return masks bool[n h w] of the size of `displayed` images."""
    count = len(_bands(data))
    if count <= 3:
        return masks
    return _side_by_side(repeat(masks, "n h w -> n h w c", c=count))[..., 0]


def _bands(data: Data) -> list[int]:
    """Return the numbers of the bands that are shown."""
    return list(data.display_bands or range(min(data.channels, 3)))


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """Return bands [n h w c] as a sheet [n rows*h columns*w 1] with empty cells."""
    count = images.shape[-1]
    columns = int(np.ceil(np.sqrt(count)))
    empty = -count % columns
    images = np.pad(images, [(0, 0)] * 3 + [(0, empty)])
    return rearrange(images, "n h w (r q) -> n (r h) (q w) 1", q=columns)
