"""NetCDF 3 written by SciPy 1.17.1, NetCDF 4 laid out as netCDF4 1.7.5 does by h5py."""

import pickle

import numpy as np
import pytest
from scipy.io import netcdf_file

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.codecs.registry import decode, read
from simmim_jax.data.sources.netcdf import values_of
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError

STORED = np.arange(24 * 4 * 5).reshape(24, 4, 5)
WIND = np.random.default_rng(0).normal(size=STORED.shape).astype(np.float32)
# Every 30.4 days from the middle of January: 24 months, in noleap as cftime has them.
TIME = {"units": "days since 2001-01-15", "calendar": "noleap"}
PACKED = {"scale_factor": 0.5, "add_offset": 270.0, "_FillValue": np.int16(7)}


def classic(path, variables, dims=("time", "lat", "lon")):
    """Write variables: name -> (array, names of axes or None for dims, attributes)."""
    with netcdf_file(path, "w") as file:
        for name, (array, axes, attributes) in variables.items():
            for dim, size in zip(axes or dims, array.shape, strict=True):
                if dim not in file.dimensions:
                    file.createDimension(dim, size)
            variable = file.createVariable(
                name, array.dtype.newbyteorder("="), axes or dims
            )
            variable[:] = array
            for key, value in attributes.items():
                setattr(variable, key, value)
    return str(path)


def hdf5(path, variables, dims=("time", "lat", "lon")):
    """Write the same as NetCDF 4: HDF5 with dimension scales."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, (array, axes, attributes) in variables.items():
            data = file.create_dataset(name, data=array)
            data.attrs.update(attributes)
            if axes == (name,):
                data.make_scale(name)
        for name, (array, axes, _) in variables.items():
            for i, dim in enumerate(axes or dims):
                if dim not in file:
                    file.create_dataset(dim, data=np.zeros(array.shape[i], "f4"))
                    file[dim].make_scale(dim)
                if dim != name:
                    file[name].dims[i].attach_scale(file[dim])
    return str(path)


FIELDS = {
    "time": (np.arange(24) * 30.4, ("time",), TIME),
    "t2m": (STORED.astype(np.int16), None, PACKED),
    "u": (WIND, None, {}),
}
BOTH = pytest.mark.parametrize("write", [classic, hdf5])


def examples(place):
    found = {}
    for split in ("train", "validation"):
        check_source(place, split)
        for example in open_source(place, split):
            found[int(example["path"].rpartition(":")[2])] = example
    assert sorted(found) == list(range(len(found)))
    return [found[i] for i in range(len(found))]


def fails(place):
    messages = set()
    for function in (check_source, open_source):
        with pytest.raises(UserError) as raised:
            function(place, "train")
        messages.add(str(raised.value))
    (message,) = messages
    return message


@BOTH
def test_variables_are_channels_and_steps_images(write, tmp_path):
    found = examples(write(tmp_path / "set.nc", FIELDS))
    assert len(found) == 24
    for step, example in enumerate(found):
        image = example["image"]
        assert (image.shape, image.dtype) == ((4, 5, 2), np.float32)
        assert image.dtype.isnative
        expected = 270 + STORED[step] / 2
        expected[STORED[step] == 7] = np.nan
        np.testing.assert_array_equal(image[:, :, 0], expected)
        np.testing.assert_array_equal(image[:, :, 1], WIND[step])
    assert np.isnan(found[0]["image"]).sum() == 1


@BOTH
def test_variables_are_chosen_and_ordered_by_name(write, tmp_path):
    place = write(tmp_path / "set.nc", FIELDS)
    image = examples(f"{place}:u,t2m")[3]["image"]
    assert image[0, 0].tolist() == [WIND[3, 0, 0], 300]  # 270 + 60 / 2
    assert examples(f"{place}:u")[3]["image"].shape == (4, 5, 1)
    raster = read(examples(place)[3]["image"], Decoding(2))
    assert raster.bands == ("t2m", "u")
    assert type(raster.pixels) is np.ndarray
    image = decode(examples(place)[3]["image"], Decoding(bands=("u", "t2m")))
    assert image[0, 0].tolist() == [WIND[3, 0, 0], 300]
    message = fails(f"{place}:u,t")
    assert "names 't', but it has t2m [time, lat, lon], u [time, lat, lon]" in message


@BOTH
def test_months_are_labels(write, tmp_path):
    place = write(tmp_path / "set.nc", FIELDS)
    found = examples(f"{place}:u#month")
    assert [example["label"] for example in found] == [*range(12), *range(12)]
    source = open_source(f"{place}:#month", "train")
    assert source.class_names[:2] == ("January", "February")
    assert source.labels.tolist() == [example["label"] for example in source]
    assert open_source(place, "train").labels is None
    with pytest.raises(UserError, match="label 'year': expected #month"):
        open_source(f"{place}:#year", "train")


@pytest.mark.parametrize(
    ("units", "kind", "steps", "months"),
    [
        # As ferret-datasets 7.6.0 has it in coads_climatology.cdf.
        ("hour since 0000-01-01 00:00:00", None, [366, 1096.485, 8401.335], [0, 1, 11]),
        ("hours since 1980-01-14 14:00:00", "standard", [0, 730.5, 1461], [0, 1, 2]),
        ("days since 1850-01-31 12:00", "360_day", [0, 1, 359], [1, 1, 0]),
        ("seconds since 2000-02-29", "all_leap", [0, 86400], [1, 2]),
        ("Days since 2001-12-31", "365_day", [0, 1, 31, 32], [11, 0, 0, 1]),
    ],
)
def test_calendars(units, kind, steps, months, tmp_path):
    attributes = {"units": units} | ({"calendar": kind} if kind else {})
    fields = {
        "time": (np.array(steps, float), ("time",), attributes),
        "u": (WIND[: len(steps)], None, {}),
    }
    place = classic(tmp_path / "set.cdf", fields)
    assert [e["label"] for e in examples(f"{place}:#month")] == months


def test_months_need_an_axis_of_time(tmp_path):
    place = classic(tmp_path / "set.nc", {"u": (WIND, None, {})})
    with pytest.raises(UserError, match="no axis of time: expected units such as"):
        open_source(f"{place}:#month", "train")


@BOTH
def test_all_other_axes_are_counted_through(write, tmp_path):
    array = np.arange(3 * 4 * 5 * 6, dtype=np.float32).reshape(3, 4, 5, 6)
    fields = {
        "time": (np.arange(3.0), ("time",), {"units": "days since 2001-01-31"}),
        "t": (array, None, {}),
    }
    place = write(tmp_path / "set.nc", fields, dims=("time", "level", "lat", "lon"))
    found = examples(f"{place}:#month")
    assert len(found) == 12
    np.testing.assert_array_equal(found[6]["image"][:, :, 0], array[1, 2])
    assert [example["label"] for example in found] == [0] * 4 + [1] * 8


def test_variables_of_other_axes_have_to_be_named(tmp_path):
    fields = {
        **FIELDS,
        "mask": (np.ones((4, 5), np.int8), ("lat", "lon"), {}),
        "time_bnds": (np.zeros((24, 2)), ("time", "two"), {}),
    }
    fields["time"] = (*FIELDS["time"][:2], TIME | {"bounds": "time_bnds"})
    place = classic(tmp_path / "set.nc", fields)
    message = fails(place)
    assert "variables of different axes: expected equal ones" in message
    assert f"{place}:NAME,NAME; it has t2m [time, lat, lon]" in message
    assert "mask [lat, lon]" in message
    assert "time_bnds" not in message
    assert len(examples(f"{place}:t2m,u")) == 24


def test_a_large_plane_is_read_in_windows(tmp_path):
    heights = np.arange(1100 * 1200, dtype=np.float32).reshape(1100, 1200)
    place = classic(tmp_path / "set.nc", {"h": (heights, ("y", "x"), {})})
    found = {}
    for split in ("train", "validation"):
        for example in open_source(place, split):
            found[example["path"].rpartition(":")[2]] = example["image"]
    assert len(found) == 9
    np.testing.assert_array_equal(found["0,512,688"][:, :, 0], heights[512:1024, 688:])


def test_missing_values():
    def of(values, **attributes):
        return values_of(np.array(values), attributes)

    assert of(np.float32([1, -1e34]), missing_value=-1e34)[0] == 1
    assert np.isnan(of(np.float32([1, -1e34]), missing_value=-1e34)[1])
    both = {"_FillValue": np.int16(-1), "missing_value": np.array([-2], ">i2")}
    assert np.isnan(of(np.int16([3, -1, -2]), **both)).tolist() == [False, True, True]
    # What netCDF's library fills unwritten floats with.
    assert np.isnan(of(np.float32([9.96921e36, 0]))).tolist() == [True, False]
    whole = of(np.int16([3, -1]))
    assert (whole.dtype, whole.tolist()) == (np.int16, [3, -1])
    packed = of(np.int16([3, -1]), scale_factor=0.5, add_offset=1.0)
    assert (packed.dtype, packed.tolist()) == (np.float32, [2.5, 0.5])
    # Limits of stored numbers, or of values if they are floats of packed integers.
    for limits in (
        {"valid_range": np.int16([0, 9])},
        {"valid_min": np.int16(0), "valid_max": np.int16(9)},
        {"scale_factor": 0.1, "valid_range": np.float32([0, 0.95])},
    ):
        found = np.isnan(of(np.int16([-1, 0, 9, 10]), **limits)).tolist()
        assert found == [True, False, False, True]
    assert np.isnan(of(np.float32([2.5, 3.5]), valid_max=3.0)).tolist() == [False, True]
    assert of(np.int16([10]), valid_range="0 9").tolist() == [10]  # as nobody reads it
    # Numbers that the stored type does not have are none of its numbers.
    for attributes in (
        {"valid_range": np.int32([-1, 40_000])},
        {"missing_value": np.int32(65_536 + 5)},
        {"missing_value": np.float32(np.nan)},
    ):
        assert of(np.int16([0, 5, 9]), **attributes).tolist() == [0, 5, 9]
    assert of(np.uint8([241]), missing_value=-15).tolist() == [241]
    # Bytes of NetCDF 3 have no unsigned kind.
    marked = {"_Unsigned": b"true", "_FillValue": np.int8(-1)}
    assert of(np.int8([-2, 5]), **marked).tolist() == [254, 5]
    assert np.isnan(of(np.int8([-1]), **marked)).all()
    marked["valid_max"] = np.int8(-6)  # 250
    assert np.isnan(of(np.int8([-6, -5]), **marked)).tolist() == [False, True]


@BOTH
def test_pickled_sources_open_the_file_themselves(write, tmp_path):
    source = open_source(write(tmp_path / "set.nc", FIELDS), "train")
    expected = source[2]["image"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[2]["image"], expected)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "set.nc"
    path.write_bytes(b"CDF\x05" + bytes(100))
    message = fails(str(path))
    assert "64-bit data: expected the classic format" in message
    assert "nccopy -k nc4" in message
    path.write_bytes(b"CDF\x01" + bytes(5))
    assert "cannot be read by SciPy" in fails(str(path))
    path.write_bytes(b"CDF\x01" + bytes(28))
    assert "has no variable of two axes" in fails(str(path))
    pytest.importorskip("h5py")
    path.write_bytes(b"neither")
    assert "cannot be read by h5py" in fails(str(path))


def test_folders_of_files(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    classic(tmp_path / "set" / "train" / "1.nc", FIELDS)
    classic(tmp_path / "set" / "train" / "2.cdf", {"u": (WIND[:3] + 1, None, {})})
    check_source(f"{tmp_path}/set:u", "train")
    source = open_source(f"{tmp_path}/set:u", "train")
    assert len(source) == 24 + 3
    for copy in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(copy[5]["image"][:, :, 0], WIND[5])
        np.testing.assert_array_equal(copy[26]["image"][:, :, 0], WIND[2] + 1)
    with pytest.raises(UserError, match="is a folder: expected names of variables"):
        open_source(f"{tmp_path}/set:u#month", "train")
