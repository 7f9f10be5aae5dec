"""DICOM files: scans and other pictures of medicine, in the unit that they measure."""

import io
import struct
import zlib
from types import ModuleType
from typing import IO, Any

import numpy as np

from simmim_jax.data.codecs.base import (
    BadImage,
    Codec,
    Decoding,
    Raster,
    native,
    too_large,
)
from simmim_jax.data.codecs.headers import encoded_size
from simmim_jax.data.codecs.scaling import rescale
from simmim_jax.errors import MissingPackageError, UserError

# Tags that files without preamble begin with: of meta information (group 2), or of
# the data set (group 8), which may be big-endian.
_BARE = (
    *(b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00"),
    *(b"\x08\x00\x08\x00", b"\x08\x00\x16\x00", b"\x08\x00\x18\x00"),
    b"\x00\x08\x00\x05",
)
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GRAYS = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXELS_HEADER = 12  # bytes of the element of compressed pixels before their value
_DEFLATED = "1.2.840.10008.1.2.1.99"
# Bytes that a deflated file may have after decompression, for each pixel allowed.
_BYTES_PER_PIXEL = 8
# Of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114])


def decode_dicom(data: bytes, decoding: Decoding) -> Raster:
    """Decode a DICOM file with one frame; see `decode_frame`.

    raises: BadImage if it is damaged, too large or has no pixels, UserError if it has
    several frames or an encoding that cannot be read.
    """
    pydicom = import_pydicom()
    _check_deflated(data, decoding.max_pixels)
    try:
        dataset = read_dataset(io.BytesIO(data))
        frames = num_frames(dataset)
    except Exception as error:  # from pydicom, of many types
        raise _damaged(pydicom, error) from error
    if frames > 1:
        raise UserError(
            f"A DICOM file has {frames} frames: expected one image. Make each frame an "
            "image: name the file or its folder with ':frames' behind it as "
            "--config.data.dataset."
        )
    return decode_frame(dataset, 0, decoding)


def read_dataset(file: IO[bytes], *, header_only: bool = False) -> Any:
    """Return a DICOM file as a pydicom.Dataset.

    Files without preamble or meta information are read as well. With `header_only` the
    file is left where its pixels begin.
    """
    pydicom = import_pydicom()
    dataset = pydicom.dcmread(file, stop_before_pixels=header_only, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ExplicitVRBigEndian
            if not little
            else pydicom.uid.ImplicitVRLittleEndian
            if implicit
            else pydicom.uid.ExplicitVRLittleEndian
        )
    return dataset


def num_frames(dataset: Any) -> int:
    """Return the number of frames, 1 if a file does not say."""
    return int(dataset.get("NumberOfFrames") or 1)


def read_frame(path: str, index: int, decoding: Decoding) -> Raster:
    """Read one frame of a file, and no others; see `decode_frame`."""
    pydicom = import_pydicom()
    with open(path, "rb") as file:
        try:
            dataset = read_dataset(file, header_only=True)
            if dataset.file_meta.TransferSyntaxUID == _DEFLATED:
                file.seek(0)
                dataset = read_dataset(file)
        except Exception as error:  # from pydicom, of many types
            raise _damaged(pydicom, error) from error
        return decode_frame(dataset, index, decoding, file)


def count_frames(path: str) -> int:
    """Return the number of frames of a file, by its header; raises BadImage."""
    pydicom = import_pydicom()
    with open(path, "rb") as file:
        try:
            return num_frames(read_dataset(file, header_only=True))
        except Exception as error:  # from pydicom, of many types
            raise _damaged(pydicom, error) from error


def decode_frame(
    dataset: Any, index: int, decoding: Decoding, file: IO[bytes] | None = None
) -> Raster:
    """Decode one frame of a pydicom.Dataset.

    file: where its pixels begin, if they have not been read.

    Slope and intercept, or the modality lookup table, are applied: a CT is in
    Hounsfield units, int16 where the slope is 1 and the intercept whole. Palettes and
    YBR become RGB. MONOCHROME1, in which small values are white, is inverted within the
    range of its stored bits, unless slope and intercept make the values a measurement.
    With channels 1 or 3, colours become grey and grey is repeated. PixelPaddingValue,
    up to PixelPaddingRangeLimit, is nodata. Windows for display are not applied.

    raises: as `decode_dicom`.
    """
    pydicom = import_pydicom()
    try:
        has_pixels = any(name in dataset for name in _PIXELS)
        place = None if has_pixels else file
        _check(pydicom, dataset, index, decoding, place)
        photometric = str(dataset.PhotometricInterpretation)
        if place is None:
            pixels = pydicom.pixels.pixel_array(dataset, index=index)
        else:
            place.seek(0)
            syntax = dataset.file_meta.TransferSyntaxUID
            pixels = pydicom.pixels.pixel_array(
                place, index=index, transfer_syntax_uid=syntax
            )
        nodata = None
        if photometric == _PALETTE:
            pixels = _colors_of(pydicom, dataset, pixels)
        elif photometric in _GRAYS:
            pixels, nodata = _measured(pydicom, dataset, index, pixels)
            pixels = pixels[:, :, None]
    except UserError:
        raise
    except BaseException as error:  # pydicom and its decoders raise many types
        # That of RLE is written in Rust, whose panics are no Exception.
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and not isinstance(error, Exception):
            raise
        raise _damaged(pydicom, error) from error
    pixels = native(pixels, "A DICOM image")
    return Raster(_with_channels(pixels, decoding.channels), nodata=nodata)


def import_pydicom() -> ModuleType:
    """Return pydicom, with its submodule `pixels`."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise MissingPackageError(
            "DICOM files need the package pydicom: pip install 'simmim_jax[medical]'."
        ) from error
    return pydicom


# ---- Checks --------------------------------------------------------------------------


def _check(
    pydicom: ModuleType,
    dataset: Any,
    index: int,
    decoding: Decoding,
    file: IO[bytes] | None,
) -> None:
    """Raise the error for pixels that are missing, too many or of an unknown kind.

    file: where the pixels begin, if they are not in the data set.
    """
    if "Rows" not in dataset or (
        file is None and not any(name in dataset for name in _PIXELS)
    ):
        modality = dataset.get("Modality", "unknown")
        raise BadImage(
            "not an image", f"A DICOM file of modality {modality} has no pixels."
        )
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in (*_GRAYS, _PALETTE, *_COLORS):
        raise UserError(
            f"A DICOM file has PhotometricInterpretation {photometric!r}: expected one "
            f"of {', '.join((*_GRAYS, _PALETTE, *_COLORS))}. Convert it to RGB."
        )
    _check_size(int(dataset.Columns), int(dataset.Rows), decoding.max_pixels)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise UserError(
            f"A DICOM file is compressed as {syntax.name}: expected JPEG, JPEG-LS, "
            "JPEG 2000 or RLE. Convert it, with dcmdjpeg or gdcmconv for example."
        ) from error
    if not decoder.is_available:
        raise MissingPackageError(
            f"A DICOM file is compressed as {syntax.name}, which needs pylibjpeg: "
            "pip install 'simmim_jax[medical]'."
        )
    # What is compressed has a size of its own, which decoders believe.
    if file is not None:
        file.seek(_PIXELS_HEADER, io.SEEK_CUR)
    encoded = pydicom.encaps.get_frame(
        dataset.PixelData if file is None else file,
        index,
        number_of_frames=num_frames(dataset),
    )
    size = encoded_size(encoded)
    if size:
        _check_size(*size, decoding.max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise too_large(
            f"A DICOM image has {width:,} x {height:,} pixels",
            f"{max_pixels:,}",
            max_pixels,
        )


def _check_deflated(data: bytes, max_pixels: int) -> None:
    """Raise BadImage if a file would become too large: pydicom inflates it at once."""
    if data[128:132] != b"DICM" or _DEFLATED.encode() not in data[:1024]:
        return
    (length,) = struct.unpack_from("<I", data, 140)
    most = _BYTES_PER_PIXEL * max_pixels
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    rest, size = data[144 + length :], 0
    try:
        while rest and not inflater.eof and size <= most:
            size += len(inflater.decompress(rest, 2**20))
            rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise BadImage("corrupt", f"A DICOM file cannot be inflated ({error}).") from (
            error
        )
    if size > most:
        raise too_large("A deflated DICOM file has more bytes", f"{most:,}", max_pixels)


def _damaged(pydicom: ModuleType, error: BaseException) -> BadImage:
    is_invalid = isinstance(error, pydicom.errors.InvalidDicomError)
    is_short = isinstance(error, EOFError) or "less than expected" in str(error)
    reason = "not an image" if is_invalid else "truncated" if is_short else "corrupt"
    text = " ".join(str(error).split())
    return BadImage(reason, f"A DICOM file cannot be read ({text:.200}).")


# ---- Values --------------------------------------------------------------------------


def _measured(
    pydicom: ModuleType, dataset: Any, index: int, pixels: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Return the values [h, w] that stored grey pixels stand for, and nodata."""
    if dataset.get("ModalityLUTSequence"):
        return pydicom.pixels.apply_modality_lut(pixels, dataset), None
    slope, intercept = _slope_and_intercept(dataset, index)
    missing, nodata = _padding(dataset, pixels)
    if missing is not None:
        pixels = np.where(missing, np.asarray(nodata, pixels.dtype), pixels)
    if dataset.PhotometricInterpretation == "MONOCHROME1" and (
        (slope, intercept) == (1, 0) and pixels.dtype.kind in "iu"
    ):
        bits = int(dataset.BitsStored)
        flip = -1 if pixels.dtype.kind == "i" else 2**bits - 1  # lowest + highest value
        pixels = (flip - pixels.astype(np.int64)).astype(pixels.dtype.newbyteorder("="))
        nodata = None if nodata is None else flip - nodata
    return rescale(pixels, slope, intercept, missing, nodata)


def _slope_and_intercept(dataset: Any, index: int) -> tuple[float, float]:
    """Return those of a frame; (1, 0) if there are none."""
    if dataset.get("DoseGridScaling"):
        return float(dataset.DoseGridScaling), 0.0
    places = [dataset]
    for groups, at in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", index),
    ):
        for group in (dataset.get(groups) or [])[at : at + 1]:
            places += (group.get("PixelValueTransformationSequence") or [])[:1]
    slope, intercept = 1.0, 0.0
    for place in places:
        if place.get("RescaleSlope") is not None:
            slope = float(place.RescaleSlope)
        if place.get("RescaleIntercept") is not None:
            intercept = float(place.RescaleIntercept)
    return slope, intercept


def _padding(
    dataset: Any, pixels: np.ndarray
) -> tuple[np.ndarray | None, float | None]:
    """Return where pixels are padding, and its stored value; (None, None) for none."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int) or pixels.dtype.kind not in "iu":
        return None, None
    limits = np.iinfo(pixels.dtype)
    if not limits.min <= value <= limits.max:
        return None, None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (pixels >= low) & (pixels <= high), float(value)


def _colors_of(pydicom: ModuleType, dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 3] of a palette; of 16 bits the upper 8."""
    colors = pydicom.pixels.apply_color_lut(pixels, dataset)
    if colors.dtype.itemsize > 1:
        colors = colors >> 8
    return colors.astype(np.uint8)


def _with_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Return an image [h, w, c] in grey or RGB, if that is wanted."""
    if channels == 1 and pixels.shape[2] == 3:
        return np.rint(pixels @ _LUMA).astype(pixels.dtype)[:, :, None]
    if channels == 3 and pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


DICOM = Codec("DICOM", b"DICM", decode_dicom, offset=128)
BARE_DICOM = Codec("DICOM without preamble", _BARE, decode_dicom)
