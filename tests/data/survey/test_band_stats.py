"""Statistics per band: exact where they are counted, merged without a trace."""

import json

import numpy as np
import pytest

from simmim_jax.data.codecs.base import Raster
from simmim_jax.data.survey.stats import (
    PERCENTILES,
    Accumulator,
    from_json,
    promoted,
    to_json,
)
from simmim_jax.errors import UserError


def images(dtype, count=6, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal([[[300, 29_000]]], [[[40, 10]]], (count, 20, 30, 2))
    return values.astype(dtype)


def measured(rasters, nodata=None):
    found = Accumulator()
    for key, raster in enumerate(rasters):
        found.add(raster, key, nodata)
    return found


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32"])
def test_statistics_are_those_of_all_values(dtype):
    array = images(dtype)
    found = measured(map(Raster, array)).result(of=9)
    assert (found.dtype, found.images, found.of) == (dtype, 6, 9)
    for band, stats in enumerate(found.bands):
        values = array[..., band].astype(np.float64).ravel()
        assert stats.values == 3600
        assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
        assert stats.std == pytest.approx(values.std(), rel=1e-9)
        assert (stats.min, stats.max) == (values.min(), values.max())
        expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
        assert list(stats.percentiles.values()) == expected.tolist()
        decibels = 10 * np.log10(values)
        assert stats.mean_db == pytest.approx(decibels.mean(), rel=1e-9)
        assert stats.std_db == pytest.approx(decibels.std(), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mark"), [("int16", -32768), ("float32", np.nan), ("float32", -9999)]
)
def test_pixels_without_data_do_not_count(dtype, mark):
    array = images(dtype)
    marked = array.copy()
    marked[:, :5] = mark
    nodata = None if np.isnan(mark) else float(mark)
    found = measured(Raster(each, nodata=nodata) for each in marked).result(of=6)
    without = measured(map(Raster, array[:, 5:])).result(of=6)
    for with_gap, plain in zip(found.bands, without.bands, strict=True):
        assert with_gap.nodata == 0.25
        assert with_gap.mean == pytest.approx(plain.mean, rel=1e-12)
        assert with_gap.std == pytest.approx(plain.std, rel=1e-9)
        assert with_gap.min == plain.min
        assert with_gap.percentiles == plain.percentiles
    assert found.nodata == nodata


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_parts_merge_into_the_whole(dtype):
    array = images(dtype, 200)  # 120,000 values a band
    array = np.concatenate([array, array + np.asarray(7, dtype)])  # more than are kept
    whole, first, second = Accumulator(), Accumulator(), Accumulator()
    for key, image in enumerate(array):
        whole.add(Raster(image), key)
        (first if key % 3 else second).add(Raster(image), key)
    first.merge(second)
    merged, together = first.result(400), whole.result(400)
    for one, other in zip(merged.bands, together.bands, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-12)
        assert one.std == pytest.approx(other.std, rel=1e-9)
        assert one.percentiles == other.percentiles
        values = array[..., int(one.name)].ravel()
        exact = np.percentile(values, PERCENTILES, method="inverted_cdf")
        ranks = np.searchsorted(np.sort(values), list(one.percentiles.values()))
        if dtype == "uint16":
            assert list(one.percentiles.values()) == exact.tolist()
        np.testing.assert_allclose(
            ranks / values.size, np.array(PERCENTILES) / 100, atol=0.05
        )


def test_a_sample_of_many_values_has_their_percentiles():
    values = np.random.default_rng(0).permutation(2**20).astype(np.float32)
    found = measured(Raster(part[..., None]) for part in values.reshape(64, 128, 128))
    (band,) = found.result(of=64).bands
    for percent, value in band.percentiles.items():
        assert value / 2**20 == pytest.approx(percent / 100, abs=4 * 0.0014)


def test_photographs_and_deep_images_share_a_histogram():
    found = measured(
        [
            Raster(np.full((2, 2, 1), 200, np.uint8)),
            Raster(np.full((2, 2, 1), 40_000, np.uint16)),
        ]
    ).result(of=2)
    assert found.dtype == "uint16"
    assert found.bands[0].percentiles[2] == 200
    assert found.bands[0].percentiles[98] == 40_000


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("uint8", "uint16"), "uint16"),
        (("uint16", "int16"), "int32"),
        (("uint8", "int8"), "int16"),
        (("uint32", "int32"), "float32"),
        (("uint16", "float32"), "float32"),
        (("int32", "float32"), "float32"),
    ],
)
def test_one_dtype_holds_the_values_of_both(dtypes, expected):
    assert promoted(*map(np.dtype, dtypes)) == expected


def test_other_numbers_of_bands_and_no_valid_values_are_errors():
    found = Accumulator()
    with pytest.raises(UserError, match="No image could be read"):
        found.result(of=3)
    found.add(Raster(np.full((2, 2, 2), np.nan, np.float32), bands=("B4", "VH")), 0)
    with pytest.raises(UserError, match="has 3 bands, others have 2"):
        found.add(Raster(np.zeros((2, 2, 3), np.float32)), 1)
    with pytest.raises(UserError, match="Band B4 has no valid value"):
        found.result(of=3)


def test_a_file_gives_back_what_was_written(tmp_path):
    negative = -images("float32", 1)  # no decibels
    found = measured([Raster(negative[0], ("B4", "VH"), -9999.0)]).result(of=1)
    path = tmp_path / "stats.json"
    path.write_text(json.dumps(to_json(found)))
    again = from_json(path)
    assert to_json(again) == to_json(found)
    assert again.bands[1].name == "VH"
    path.write_text("{}")
    with pytest.raises(UserError, match="simmim stats DATA --out=FILE"):
        from_json(path)
