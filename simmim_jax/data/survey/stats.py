"""Statistics of the values of images, per band, over pixels that were measured."""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.data.codecs.base import Raster
from simmim_jax.errors import UserError

PERCENTILES = (0.1, 1, 2, 50, 98, 99, 99.9)
# Integers of 8 and 16 bits are counted one by one: percentiles are exact.
_LOWEST, _BINS = -(2**15), 2**15 + 2**16
# Other values are kept up to this number, then a random sample of them: the standard
# error of a percentile p is sqrt(p (1 - p) / 131,072), 0.1 % of the rank at most.
_KEPT = 2**17


@dataclasses.dataclass(frozen=True)
class Band:
    """Statistics of one band, in the units of the files.

    values: number of them that were measured; nodata: share of those that were not;
    percentiles: by their rank in percent, the lowest value that so many do not exceed;
    mean_db, std_db: of 10 log10(x) over x > 0, NaN if there are none.
    """

    name: str
    values: int
    nodata: float
    mean: float
    std: float
    min: float
    max: float
    percentiles: dict[float, float]
    mean_db: float = math.nan
    std_db: float = math.nan


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a data set.

    dtype: one of DTYPES that holds all values; images: number of them, out of `of`;
    nodata: value that files declare for pixels without a measurement, or None.
    """

    dtype: str
    bands: tuple[Band, ...]
    images: int
    of: int
    nodata: float | None = None


class Accumulator:
    """Sums up images; parts from several processes are merged.

    Means and squares are merged by Chan, Golub & LeVeque (1979), in float64.
    """

    def __init__(self) -> None:
        self.images = 0
        self.dtype: np.dtype | None = None
        # Images of each type.
        self.types: collections.Counter[str] = collections.Counter()
        self.names: tuple[str, ...] = ()
        self.nodata: float | None = None
        # Bands that had no value at all in an image.
        self.missing: tuple[str, ...] = ()
        self._bands: list[_Sums] = []

    def add(self, raster: Raster, key: int, nodata: float | None = None) -> None:
        """Count an image.

        key: number of the image, which decides on its sampled values; nodata: value
        without a measurement, if the file does not declare one.
        raises: UserError if the number of bands is another than before.
        """
        pixels = raster.pixels
        mark = raster.nodata if nodata is None else nodata
        self._fit(pixels.shape[2], pixels.dtype, raster.bands, raster.nodata)
        rng = np.random.default_rng(key)
        for band, sums in enumerate(self._bands):
            sums.add(pixels[:, :, band].ravel(), mark, rng)
        self.types[str(pixels.dtype)] += 1
        self.images += 1

    def note(self, raster: Raster, nodata: float | None = None) -> None:
        """Note type, names, mark and missing bands, without counting values."""
        self._fit(
            raster.pixels.shape[2], raster.pixels.dtype, raster.bands, raster.nodata
        )
        mark = raster.nodata if nodata is None else nodata
        for place, name in enumerate(raster.bands):
            is_new = name not in self.missing
            if is_new and not valid(raster.pixels[:, :, place], mark).any():
                self.missing += (name,)
        self.types[str(raster.pixels.dtype)] += 1
        self.images += 1

    def merge(self, other: "Accumulator") -> None:
        """Count what another one has counted."""
        if other.dtype is None:
            return
        self._fit(len(other._bands), other.dtype, other.names, other.nodata)
        for mine, theirs in zip(self._bands, other._bands, strict=True):
            mine.merge(theirs)
        self.types += other.types
        self.images += other.images

    def result(self, of: int) -> Statistics:
        """Return the statistics; of: number of images of the data set.

        raises: UserError if no image was counted, or a band has no value at all.
        """
        if self.dtype is None:
            raise UserError("No image could be read, so there are no statistics.")
        names = self.names or tuple(map(str, range(len(self._bands))))
        bands = tuple(
            sums.result(name) for name, sums in zip(names, self._bands, strict=True)
        )
        return Statistics(str(self.dtype), bands, self.images, of, self.nodata)

    def histogram(self, band: int, bins: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Return shares [bins] and edges [bins + 1] from percentile 0.1 to 99.9."""
        values, weights = self._bands[band].weighted()
        low, high = quantiles(values, weights, (0.1, 99.9))
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(values, bins, (low, high), weights=weights)
        return counts / weights.sum(), edges

    def _fit(
        self,
        channels: int,
        dtype: np.dtype,
        names: tuple[str, ...],
        nodata: float | None,
    ) -> None:
        if self.dtype is None:
            self.dtype, self.names, self.nodata = dtype, names, nodata
            self._bands = [_Sums() for _ in range(channels)]
        if channels != len(self._bands):
            raise UserError(
                f"An image has {channels} bands, others have {len(self._bands)}: "
                "expected equally many. Set the number of channels to convert "
                "photographs to, 1 or 3, or choose bands by name."
            )
        if self.nodata is None:
            self.nodata = nodata
        self.dtype = promoted(self.dtype, dtype)


def promoted(one: np.dtype, other: np.dtype) -> np.dtype:
    """Return the dtype of DTYPES that holds the values of both."""
    common = np.promote_types(one, other)
    return np.dtype("float32" if common in (np.int64, np.float64) else common)


def valid(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Return where values are measurements: neither NaN or infinite, nor `nodata`."""
    found = np.isfinite(values)
    return found if nodata is None else found & (values != nodata)


def quantiles(
    values: np.ndarray, weights: np.ndarray, percents: Sequence[float]
) -> list[float]:
    """Return the lowest value that a share of the weight does not exceed, for each.

    values: sorted [n]; weights: int [n]. NumPy calls it "inverted_cdf".
    """
    below = np.cumsum(weights)
    ranks = np.ceil(np.array(percents) / 100 * below[-1] - 1e-9)
    return values[np.searchsorted(below, ranks)].tolist()


# ---- Files ---------------------------------------------------------------------------


def to_json(statistics: Statistics) -> dict[str, Any]:
    """Return what `from_json` reads; NaN becomes None."""
    fields = dataclasses.asdict(statistics)
    for band in fields["bands"]:
        band["percentiles"] = {f"{p:g}": v for p, v in band["percentiles"].items()}
        for name in ("mean_db", "std_db"):
            band[name] = None if math.isnan(band[name]) else band[name]
    return fields


def from_json(path: str | Path) -> Statistics:
    """Read a file of `simmim stats`; raises UserError if it is not one."""
    try:
        fields = json.loads(Path(path).read_text())
        bands = []
        for band in fields.pop("bands"):
            percentiles = {float(p): v for p, v in band.pop("percentiles").items()}
            known = {name: v for name, v in band.items() if v is not None}
            bands.append(Band(**known, percentiles=percentiles))
        return Statistics(**fields, bands=tuple(bands))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"config.data.statistics='{path}' cannot be read ({error!r:.100}): "
            "expected a file that `simmim stats DATA --out=FILE` has written."
        ) from error


# ---- One band ------------------------------------------------------------------------


class _Sums:
    """Sums, counts and a sample of the values of one band."""

    def __init__(self) -> None:
        self.count = self.missing = 0
        self.mean = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf
        self.counts: np.ndarray | None = None
        # A random number for each kept value: those with the lowest ones are kept, so
        # that neither the order nor merging matters.
        self.kept: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.highest_key = 1.0
        self.sampled = 0

    def add(
        self, values: np.ndarray, nodata: float | None, rng: np.random.Generator
    ) -> None:
        measured = valid(values, nodata)
        self.missing += int(values.size - np.count_nonzero(measured))
        values = values[measured]
        if not values.size:
            return
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        self._moments(values.size, mean, float(np.square(exact - mean).sum()))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            if self.counts is None:
                self.counts = np.zeros(_BINS, np.int64)
            places = values.astype(np.int64) - _LOWEST
            counted = np.bincount(places)
            self.counts[: counted.size] += counted
        else:
            self.sampled += values.size
            self._keep(exact, rng.random(values.size))

    def merge(self, other: "_Sums") -> None:
        self.missing += other.missing
        if not other.count:
            return
        self._moments(other.count, other.mean, other.squares)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.counts is not None:
            own = 0 if self.counts is None else self.counts
            self.counts = own + other.counts
        self.sampled += other.sampled
        for values, keys in zip(other.kept, other.keys, strict=True):
            self._keep(values, keys)

    def weighted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values, sorted float64 [n], and how many there are of each [n]."""
        values, weights = np.empty(0), np.empty(0)
        if self.counts is not None:
            places = np.flatnonzero(self.counts)
            values, weights = places.astype(np.float64) + _LOWEST, self.counts[places]
        if self.sampled:
            self._drop()
            (kept,) = self.kept
            values = np.concatenate([values, kept])
            share = self.sampled / kept.size
            weights = np.concatenate([weights, np.full(kept.size, share)])
        order = np.argsort(values, kind="stable")
        return values[order], weights[order]

    def result(self, name: str) -> Band:
        if not self.count:
            raise UserError(
                f"Band {name} has no valid value in the sampled images: all are NaN or "
                "marked as missing. Check config.data.nodata, or choose other bands "
                "with config.data.bands."
            )
        values, weights = self.weighted()
        positive = values > 0
        mean_db = std_db = math.nan
        if positive.any():
            decibels = 10 * np.log10(values[positive])
            mean_db = float(np.average(decibels, weights=weights[positive]))
            spread = np.square(decibels - mean_db)
            std_db = math.sqrt(np.average(spread, weights=weights[positive]))
        return Band(
            name=name,
            values=self.count,
            nodata=self.missing / (self.count + self.missing),
            mean=self.mean,
            std=math.sqrt(self.squares / self.count),
            min=self.low,
            max=self.high,
            percentiles=dict(
                zip(PERCENTILES, quantiles(values, weights, PERCENTILES), strict=True)
            ),
            mean_db=mean_db,
            std_db=std_db,
        )

    def _moments(self, count: int, mean: float, squares: float) -> None:
        total = self.count + count
        step = mean - self.mean
        self.squares += squares + step**2 * self.count * count / total
        self.mean += step * count / total
        self.count = total

    def _keep(self, values: np.ndarray, keys: np.ndarray) -> None:
        low = keys < self.highest_key
        self.kept.append(values[low])
        self.keys.append(keys[low])
        if sum(part.size for part in self.keys) > 2 * _KEPT:
            self._drop()

    def _drop(self) -> None:
        """Leave the values with the lowest keys alone, as one part."""
        values, keys = np.concatenate(self.kept), np.concatenate(self.keys)
        if keys.size > _KEPT:
            lowest = np.argpartition(keys, _KEPT)[:_KEPT]
            values, keys = values[lowest], keys[lowest]
            self.highest_key = float(keys.max())
        self.kept, self.keys = [values], [keys]
