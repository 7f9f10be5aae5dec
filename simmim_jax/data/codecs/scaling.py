"""Stored numbers to measured values: slope and intercept, as many formats have them."""

import numpy as np

_SHIFTED = (np.dtype(np.int16), np.dtype(np.int32))


def rescale(
    pixels: np.ndarray,
    slope: float,
    intercept: float,
    missing: np.ndarray | None = None,
    nodata: float | None = None,
) -> tuple[np.ndarray, float | None]:
    """Return slope * pixels + intercept, and the nodata value of the result.

    pixels: integers or floats of any shape; missing: bool of that shape, pixels without
    a measurement; nodata: their stored value.
    returns: pixels unchanged for slope 1 and intercept 0; int16, or int32 where that is
    too small, for integers with slope 1 and a whole intercept; float32 otherwise. There
    missing pixels are NaN, and nodata is None.
    """
    if (slope, intercept) == (1, 0):
        return pixels, nodata
    if slope == 1 and float(intercept).is_integer() and pixels.dtype.kind in "iu":
        shifted = pixels.astype(np.int64) + int(intercept)
        valid = shifted if missing is None else shifted[~missing]
        low, high = valid.min(initial=0), valid.max(initial=0)
        for dtype in _SHIFTED:
            limits = np.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                if nodata is not None:
                    nodata = float(np.clip(nodata + intercept, limits.min, limits.max))
                if missing is not None and nodata is not None:
                    shifted[missing] = int(nodata)
                return shifted.astype(dtype), nodata
    scaled = (pixels.astype(np.float64) * slope + intercept).astype(np.float32)
    if missing is not None:
        scaled[missing] = np.nan
    return scaled, None
