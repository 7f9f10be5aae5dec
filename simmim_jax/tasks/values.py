"""Values of pixels: their type, statistics and normalisation, resolved once a run.

A run takes over what the checkpoint knows that it resumes or starts from. Otherwise its
first process reads a sample of the training split: were each to read one, an unreadable
file on one host could make their programs differ.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simmim_jax.augment.normalization import Normalization
from simmim_jax.checkpoints import layout
from simmim_jax.config import schema
from simmim_jax.config.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Data,
    RunConfig,
)
from simmim_jax.data.codecs.base import Raster
from simmim_jax.data.sources.base import Source
from simmim_jax.data.survey import stats
from simmim_jax.data.survey.sample import sample
from simmim_jax.data.survey.stats import Accumulator, Statistics
from simmim_jax.errors import UserError
from simmim_jax.runtime import distributed
from simmim_jax.tasks import precision
from simmim_jax.tasks.views import values_of

# Images of a sample: this many, or fewer if they are large, but at least the second.
IMAGES, FEW = 256, 8
# Values of a sample, which take about two seconds to measure.
_VALUES = 2**26
# Standard deviations, and percentiles, between which values stay by default.
_CLIP, _PERCENTS = (-2.0, 2.0), (1.0, 99.0)
# Bands that a run prints.
_SHOWN = 6


def normalization(data: Data) -> Normalization:
    """Return how values of a batch become what the model sees; `data` is resolved."""
    is_decibel = data.normalization == "decibels"
    clip: tuple[float, float] | None = None
    if data.normalization == "clipped":
        clip = (data.clip[0], data.clip[1]) if data.clip else _CLIP
    elif data.normalization in ("percentiles", "range"):
        clip = (-1, 1)
    return Normalization(
        data.mean,
        data.std,
        255.0 if data.dtype == "uint8" and not is_decibel else 1.0,
        clip,
        is_decibel,
        data.nodata[0] if data.nodata else None,
    )


def assume(config: Any) -> Any:
    """Return a config for measurements without data: of photographs, or like them.

    What is measured depends on neither. A dtype that is left open is an accelerator's.
    """
    if config.dtype == "auto":
        config = dataclasses.replace(config, dtype="bfloat16")
    data = config.data
    changes: dict[str, Any] = {}
    if data.dtype == "auto":
        changes["dtype"] = "uint8"
    if not data.mean:
        is_photo = data.channels == 3
        changes["mean"] = IMAGENET_MEAN if is_photo else (0.5,) * data.channels
        changes["std"] = IMAGENET_STD if is_photo else (0.25,) * data.channels
    return _with(config, changes)


def resolve(
    config: Any, source: Source, workdir: Path | None = None, path: str = "config"
) -> tuple[Any, tuple[str, ...]]:
    """Return a run's config with its dtype and its values' statistics, and what to say.

    source: the training split; workdir: whose run is resumed, if it has one; path: of
    the config in messages.
    raises: UserError if images have another number of channels than the config, no
    valid value, or a type that contradicts the config.
    """
    begun = begun_in(workdir)
    dtype, chosen = precision.resolve(config.dtype, begun)
    config = dataclasses.replace(config, dtype=dtype)
    if begun is not None:
        return _with(config, _taken(config.data, begun.data)), chosen
    if config.init_from:
        learned = _recorded(layout.read_meta(config.init_from)).data
        # Pre-training may continue with other images.
        if learned.channels == config.data.channels:
            _check_bands(config, learned, path)
        else:
            learned = _of_bands(learned, config.data.bands)
        if learned.channels == config.data.channels:
            config = _with(config, _taken(config.data, learned))
    found = None
    if jax.process_index() == 0:
        found = _surveyed(config.data, source, path)
    if jax.process_count() > 1:
        found = distributed.of_first_process(found)
    assert found is not None
    changes, said = found
    lists = {name: tuple(v) for name, v in changes.items() if isinstance(v, list)}
    config = _with(config, changes | lists)
    schema.check(config, path)
    return config, (*chosen, said)


# ---- What a checkpoint knows ---------------------------------------------------------


def begun_in(workdir: Path | None) -> RunConfig | None:
    """Return the config of the run that a workdir holds, None if it holds none."""
    if workdir is None or not any((workdir / "checkpoints").glob("*/params")):
        return None
    if not (workdir / "config.json").exists():
        return None
    return _recorded(layout.read_record(workdir))


def _recorded(record: Any) -> RunConfig:
    return schema.single(schema.parse(record["config"], stored=True))


def _taken(data: Data, stored: Data) -> dict[str, Any]:
    """Return the fields of a run's data that `data` leaves open, from a checkpoint.

    Statistics belong to their type and normalisation.
    """
    taken: dict[str, Any] = {}
    if data.dtype == "auto":
        taken["dtype"] = stored.dtype
    if (
        not data.mean
        and not data.statistics
        and data.dtype in ("auto", stored.dtype)
        and data.channels == stored.channels
        and data.normalization in ("standard", stored.normalization)
        and data.clip in ((), stored.clip)
    ):
        for name in ("normalization", "clip", "mean", "std"):
            taken[name] = getattr(stored, name)
    for name in ("nodata", "bands"):
        if not getattr(data, name):
            taken[name] = getattr(stored, name)
    return taken


def _of_bands(learned: Data, bands: tuple[str, ...]) -> Data:
    """Return what a checkpoint knows of some of its bands; all where one is new."""
    if not {*bands} <= {*learned.bands}:
        return learned
    places = [learned.bands.index(band) for band in bands]
    return dataclasses.replace(
        learned,
        channels=len(bands),
        bands=bands,
        mean=tuple(learned.mean[place] for place in places),
        std=tuple(learned.std[place] for place in places),
    )


def _check_bands(config: RunConfig, learned: Data, path: str) -> None:
    """Raise UserError if a checkpoint has learned from other bands."""
    bands = config.data.bands
    if bands and learned.bands and bands != learned.bands:
        order = " in another order" if set(bands) == set(learned.bands) else ""
        raise UserError(
            f"{path}.data.bands={bands}, but {path}.init_from='{config.init_from}' "
            f"learned from {learned.bands}{order}: leave the field out, and bands are "
            "found by their names."
        )


# ---- What a sample says --------------------------------------------------------------


def _surveyed(data: Data, source: Source, path: str) -> tuple[dict[str, Any], str]:
    """Return the fields that `data` leaves open, and a line on the values."""
    is_open = data.dtype == "auto" or not data.mean
    found = _sampled(source, data, IMAGES if is_open else FEW, measures=False)
    dtype = _type_of(found) if data.dtype == "auto" else data.dtype
    changes: dict[str, Any] = {"dtype": dtype}
    mark = found.nodata
    if not data.nodata and mark is not None and _holds(dtype, mark):
        changes["nodata"] = (mark,)
    elif data.nodata and not _holds(dtype, data.nodata[0]):
        raise UserError(
            f"{path}.data.nodata={data.nodata!r}: values are {dtype}, which cannot "
            "have it. Leave it out."
        )
    marks = changes.get("nodata", data.nodata)
    said = f"values: {dtype}, {data.channels} band{'s' * (data.channels > 1)}"
    if others := [name for name in found.types if not np.can_cast(name, dtype)]:
        count = sum(found.types[name] for name in others)
        said += (
            f", {count:,} of {found.images:,} images left out as {' and '.join(others)}"
        )
    if found.missing:
        said += f", without {', '.join(found.missing)} in some images"
    if marks:
        said += f", {marks[0]:g} where there is no data"
    if data.mean:
        if data.dtype == "auto" and dtype != "uint8":
            raise UserError(
                f"{path}.data.mean={data.mean!r} is of pixels in 0..1, but the images "
                f"are {dtype}: set mean=() and std=() to measure them, or dtype={dtype}"
                " if they are of these values."
            )
        return changes, f"{said}, mean and standard deviation of the config"
    if data.normalization == "range":
        low, high = data.clip
        mean, std = (low + high) / 2, (high - low) / 2
        return changes | _scaled(
            dtype, data, [mean] * data.channels, [std] * data.channels
        ), f"{said}, {low:g} to {high:g} become -1 to 1"
    is_photo = dtype == "uint8" and data.channels == 3
    if is_photo and data.normalization == "standard" and not data.statistics:
        changes |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        return changes, f"{said}, ImageNet's mean and standard deviation"
    if data.statistics:
        statistics = stats.from_json(data.statistics)
    else:
        measured = dataclasses.replace(data, nodata=marks, dtype=dtype)
        sums = _sampled(source, measured, IMAGES, measures=True)
        statistics = sums.result(len(source))
    mean_std = _moments(statistics, data, path)
    return changes | _scaled(dtype, data, *mean_std), f"{said}, {_text(statistics)}"


def _type_of(found: Accumulator) -> str:
    """Return the type that holds a sample; uint8 if more than half of it is.

    Bytes beside other types have another scale: these images are bad ones.
    """
    if 2 * found.types["uint8"] > found.images:
        return "uint8"
    return str(found.dtype)


def _sampled(source: Source, data: Data, count: int, measures: bool) -> Accumulator:
    """Look at a sample; measures: count its values as well."""
    values = values_of(data)
    mark = data.nodata[0] if data.nodata else None
    found, first_error = Accumulator(), None
    for each in sample(source, FEW, values):
        if isinstance(each.image, Raster):
            fitting = _VALUES // max(each.image.pixels.size, 1)
            count = min(count, max(FEW, fitting))
            break
    for each in sample(source, count, values):
        if not isinstance(each.image, Raster):
            first_error = first_error or each.image
        elif measures:
            if np.can_cast(each.image.pixels.dtype, data.dtype):
                found.add(each.image, each.index, mark)
        else:
            found.note(each.image, mark)
    if found.dtype is None:
        raise UserError(
            f"None of {min(count, len(source)):,} images from all over "
            f"config.data.dataset={data.dataset!r} can be read. The first: "
            f"{first_error}"
        )
    return found


def _moments(
    statistics: Statistics, data: Data, path: str
) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation that normalise each band."""
    bands = statistics.bands
    if len(bands) != data.channels:
        raise UserError(
            f"{path}.data.statistics={data.statistics!r} is of {len(bands)} bands: "
            f"expected {path}.data.channels={data.channels}. Measure the bands that "
            "are used."
        )
    if data.normalization == "decibels":
        for band in bands:
            if math.isnan(band.mean_db):
                raise UserError(
                    f"{path}.data.normalization='decibels': band {band.name} has no "
                    "value above 0. Expected power, not decibels: choose 'standard'."
                )
        return [b.mean_db for b in bands], [b.std_db or 1 for b in bands]
    if data.normalization == "percentiles":
        low, high = data.clip or _PERCENTS
        if not {low, high} <= set(stats.PERCENTILES):
            raise UserError(
                f"{path}.data.clip={data.clip!r}: expected two of {stats.PERCENTILES} "
                "with data.normalization='percentiles'."
            )
        ends = [(b.percentiles[low], b.percentiles[high]) for b in bands]
        return [(a + b) / 2 for a, b in ends], [(b - a) / 2 or 1 for a, b in ends]
    return [b.mean for b in bands], [b.std or 1 for b in bands]


def _scaled(
    dtype: str, data: Data, mean: list[float], std: list[float]
) -> dict[str, Any]:
    """Return the fields mean and std, in the units that they have with this dtype."""
    scale = 255 if dtype == "uint8" and data.normalization != "decibels" else 1
    return {
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
    }


def _text(statistics: Statistics) -> str:
    shown = ", ".join(
        f"{band.name}: {band.mean:.6g} ± {band.std:.3g}"
        for band in statistics.bands[:_SHOWN]
    )
    more = ", ..." if len(statistics.bands) > _SHOWN else ""
    missing = np.mean([band.nodata for band in statistics.bands])
    return (
        f"measured on {statistics.images:,} of {statistics.of:,} images ({shown}{more}"
        + (f"; {missing:.1%} without data" if missing else "")
        + ")"
    )


def _holds(dtype: str, value: float) -> bool:
    """Whether a dtype has a value; NaN needs no mark."""
    if dtype == "float32":
        return not math.isnan(value)
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max and value == int(value)


def _with(config: Any, changes: dict[str, Any]) -> Any:
    """Return a config with fields of its data changed."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
