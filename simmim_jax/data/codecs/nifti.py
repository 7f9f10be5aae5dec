"""NIfTI volumes: slices across one anatomical axis, in the unit that they measure."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from simmim_jax.data.codecs.base import BadImage, Codec, Decoding, Raster, native
from simmim_jax.data.codecs.scaling import rescale
from simmim_jax.errors import MissingPackageError, UserError

# Position of the axis that slices are cut across, once axes point right, anterior and
# superior.
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
# Versions 1 and 2, as single files of either byte order; gzip has its own signature.
_SIGNATURE_1 = b"n+1\0"
_SIGNATURE_2 = b"n+2\0\r\n\032\n"
# Of a compressed volume, which takes that much memory once [bytes].
_MAX_UNPACKED = 2**33
_MAX_SIDE = 2**20


class Volume(NamedTuple):
    """All slices of a volume.

    slices: stored numbers [n, h, w] or [n, h, w, c]; slope, intercept: what turns them
    into values.
    """

    slices: np.ndarray
    slope: float
    intercept: float


Unpack = Callable[[], np.ndarray]


def open_volume(
    path: str, axis: str, keep: Callable[[Unpack], np.ndarray] = lambda unpack: unpack()
) -> Volume:
    """Open a .nii or .nii.gz file; the former is memory-mapped.

    Axes are turned to point right, anterior and superior first, as the file's affine
    says, so that slices of all files look alike: anterior or superior is up, and right
    (sagittal: anterior) is to the right. A fourth axis becomes channels.

    axis: of `AXES`; keep: returns what the function that it is given unpacks from a
    compressed file, or has returned before.
    raises: BadImage for a damaged file, OSError for an unreadable one, UserError for
    other numbers of axes.
    """
    nibabel = import_nibabel()
    with open(path, "rb"):  # what nibabel raises may also mean damage
        pass
    try:
        image, shape, orientation = _load(nibabel, path)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)

        def cut() -> np.ndarray:
            stored = np.asanyarray(image.dataobj.get_unscaled())
            stored = stored.reshape(shape, order="F")
            upright = nibabel.apply_orientation(stored, orientation)
            # [n, u, v, ...] -> [n, v downwards, u, ...]
            return np.moveaxis(upright, AXES[axis], 0).swapaxes(1, 2)[:, ::-1]

        is_packed = path.lower().endswith(".gz")
        slices = keep(lambda: np.ascontiguousarray(cut())) if is_packed else cut()
    except UserError:
        raise
    except Exception as error:  # nibabel, zlib and NumPy raise many types
        raise _damaged(error) from error
    return Volume(slices, slope, intercept)


def count_slices(path: str, axis: str) -> int:
    """Return the number of slices by the header alone; raises as `open_volume`."""
    nibabel = import_nibabel()
    with open(path, "rb"):
        pass
    try:
        _, shape, orientation = _load(nibabel, path)
    except UserError:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from error
    return shape[int(np.flatnonzero(orientation[:, 0] == AXES[axis])[0])]


def slice_of(volume: Volume, index: int, where: str) -> np.ndarray:
    """Return the values of a slice, [h, w, c] of one of DTYPES.

    where: the file, for messages.
    """
    image = volume.slices[index]
    if image.dtype.names:  # colours are stored as records
        image = np.stack([image[name] for name in image.dtype.names], axis=-1)
    image = native(image, where)
    image, _ = rescale(image, volume.slope, volume.intercept)
    image = image if image.ndim == 3 else image[:, :, None]
    return np.ascontiguousarray(image)


def import_nibabel() -> ModuleType:
    """Return nibabel."""
    try:
        import nibabel
    except ImportError as error:
        raise MissingPackageError(
            "NIfTI files need the package nibabel: pip install 'simmim_jax[medical]'."
        ) from error
    return nibabel


def _load(nibabel: ModuleType, path: str) -> tuple[Any, tuple[int, ...], np.ndarray]:
    """Return the image, shape and orientation of a file, by its header.

    shape: [x, y, z] or [x, y, z, c].
    """
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # version 2 is a subclass
        raise ValueError(f"nibabel calls it {type(image).__name__}")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise UserError(
            f"{path!r} has shape {list(shape)}: expected a volume [x, y, z] or "
            "[x, y, z, channels]. Save one volume for each image."
        )
    if min(shape) < 1 or max(shape) > _MAX_SIDE:
        raise ValueError(f"shape {list(shape)}")
    num_bytes = math.prod(shape) * image.get_data_dtype().itemsize
    if path.lower().endswith(".gz") and num_bytes > _MAX_UNPACKED:
        raise BadImage(
            "too large",
            f"{path!r} has {num_bytes:,} bytes after decompression: expected at most "
            f"{_MAX_UNPACKED:,}. Save it as .nii, which is not read as a whole.",
        )
    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():  # an affine of zeros
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
    return image, shape, orientation


def _damaged(error: Exception) -> BadImage:
    text = " ".join(str(error).split())
    is_short = isinstance(error, EOFError) or "mmap length" in text
    is_short |= "Expected" in text and "bytes" in text
    reason = "truncated" if is_short else "corrupt"
    return BadImage(reason, f"A NIfTI file cannot be read ({text:.200}).")


def _refuse(data: bytes, decoding: Decoding) -> Raster:
    raise UserError(
        "A NIfTI file is a volume: expected one image. Name the file or its folder as "
        "--config.data.dataset, PATH or PATH:AXIS with sagittal, coronal or axial: "
        "each slice becomes an image."
    )


NIFTI_1 = Codec("NIfTI", _SIGNATURE_1, _refuse, offset=344)
NIFTI_2 = Codec("NIfTI 2", _SIGNATURE_2, _refuse, offset=4)
