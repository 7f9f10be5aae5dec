"""Files by the endings of their names: packages that read them, and ways in."""

import collections
import importlib.util
import os
from collections.abc import Iterable
from typing import NamedTuple

from simmim_jax.errors import MissingPackageError

_DOUBLE = (".nii.gz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
NO_ENDING = "files without an ending"
# Kinds of files that an error explains, the most frequent ones.
_EXPLAINED = 3


class Package(NamedTuple):
    """What reads files of one ending: a module, and the extra that installs it."""

    format: str
    module: str
    extra: str


class WayIn(NamedTuple):
    """What files of one ending are, and what to do so that they can be read."""

    format: str
    advice: str


# Endings that count as images, but need a package that is not always there.
PACKAGES = {".dcm": Package("DICOM", "pydicom", "medical")}

_LIST = "name them in a list, such as of `find . -name '*{0}' > images.txt`"
_SAVE = "save each image as .npy, an array [h, w, c]"
_NAME = "name the file itself as the data set"
_UNPACK = "unpack it, or pack it again as .tar or .zip"
_HEIC = WayIn("HEIC photographs", "convert them to .jpg, such as with heif-convert")
_RAW = WayIn("raw photographs", "develop them to .jpg or to .png of 16 bits")
_VIDEO = WayIn("videos", "extract frames: `ffmpeg -i VIDEO -r 1 frames/%06d.jpg`")
_DRAWING = WayIn("drawings or documents", "export them as .png")
_SLIDE = WayIn("microscopy slides", "export regions of them as .tif or .npy")
_OBJECTS = WayIn("Python objects, which are never unpickled", _SAVE)
_FITS = WayIn("FITS", f"read them by astropy.io.fits.getdata, and {_SAVE}")
_MATLAB = WayIn("MATLAB arrays", f"read them by scipy.io.loadmat, and {_SAVE}")
_EXR = WayIn("images of high dynamic range", _SAVE)
_OTHER_IMAGES = WayIn("images of less common formats", _LIST)
_TABLE = WayIn("lists, maybe of images", _NAME)
_ARCHIVE = WayIn("an archive", _NAME)
_PACKED = WayIn("a compressed archive", _UNPACK)

WAYS_IN: dict[str, WayIn] = {
    **dict.fromkeys((".heic", ".heif"), _HEIC),
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf"), _RAW),
    **dict.fromkeys((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"), _VIDEO),
    **dict.fromkeys((".eps", ".pdf", ".psd", ".svg"), _DRAWING),
    **dict.fromkeys((".czi", ".lif", ".mrxs", ".nd2", ".ndpi", ".svs"), _SLIDE),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), _OBJECTS),
    **dict.fromkeys((".fit", ".fits"), _FITS),
    ".mat": _MATLAB,
    **dict.fromkeys((".exr", ".hdr"), _EXR),
    **dict.fromkeys((".avif", ".j2k", ".jfif", ".jp2", ".pgm", ".ppm"), _OTHER_IMAGES),
    **dict.fromkeys((".csv", ".parquet", ".tsv"), _TABLE),
    **dict.fromkeys((".tar", ".zip"), _ARCHIVE),
    **dict.fromkeys((".7z", ".rar", ".tgz", *_DOUBLE[1:]), _PACKED),
}


def ending_of(name: bytes | str) -> str:
    """Return ".jpg" of "a/B.JPG", ".nii.gz" of "c.nii.gz"; `NO_ENDING` without one."""
    name = os.fsdecode(name).lower()
    double = next((ending for ending in _DOUBLE if name.endswith(ending)), "")
    return double or os.path.splitext(name)[1] or NO_ENDING


def count_endings(names: Iterable[bytes | str]) -> dict[str, int]:
    """Return the number of files of each ending, the most frequent one first."""
    return dict(collections.Counter(map(ending_of, names)).most_common())


def ways_in(counts: dict[str, int]) -> str:
    """Return a sentence for each frequent kind of file that can be made use of.

    counts: as of `count_endings`.
    """
    known = [ending for ending in counts if ending in WAYS_IN][:_EXPLAINED]
    sentences = (
        f" {counts[ending]:,} {ending} ({WAYS_IN[ending].format}): "
        f"{WAYS_IN[ending].advice.format(ending)}."
        for ending in known
    )
    return "".join(sentences)


def check_package(name: bytes | str, place: str) -> None:
    """Raise MissingPackageError if the package that reads a file is not installed.

    name: of the file; place: where it is, for the message.
    """
    package = PACKAGES.get(ending_of(name))
    if package and importlib.util.find_spec(package.module) is None:
        raise MissingPackageError(
            f"{place!r} has {ending_of(name)} files ({package.format}), which need the "
            f"package {package.module}: pip install 'simmim_jax[{package.extra}]'."
        )
