"""Decode .npy files: dtypes, memory layouts, and damage."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.npy import encode_npy
from simmim_jax.data.codecs.registry import decode
from simmim_jax.errors import UserError
from tests.images import gradient, npy

VALUES = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<f2", ">f2", "<f8", ">f8"])
@pytest.mark.parametrize("layout", ["C", "F", "view"])
def test_values_survive_every_dtype_and_layout(dtype, layout):
    array = (gradient(5, 6, 3) if dtype == "u1" else VALUES).astype(dtype)
    expected = array.astype(np.uint8 if dtype == "u1" else np.float32)
    if layout == "F":
        array = np.asfortranarray(array)
    elif layout == "view":  # neither C nor Fortran order
        array = np.repeat(np.repeat(array, 2, 0), 2, 1)[::2, ::2]
        assert not array.flags.forc
    decoded = decode(npy(array), Decoding(3))
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.dtype == expected.dtype
    assert decoded.dtype.isnative
    assert decoded.flags.c_contiguous


def test_two_axes_are_one_channel():
    decoded = decode(npy(VALUES[:, :, 0]), Decoding(1))
    np.testing.assert_array_equal(decoded, VALUES[:, :, :1])


def test_any_number_of_channels():
    array = np.zeros((2, 3, 300), np.float32)
    assert decode(npy(array), Decoding(300)).shape == array.shape


def test_later_header_versions_are_read():
    file = io.BytesIO()
    np.lib.format.write_array(file, VALUES, version=(2, 0))
    np.testing.assert_array_equal(decode(file.getvalue(), Decoding(3)), VALUES)


def test_encoded_arrays_decode_to_themselves():
    for array in (VALUES, gradient(4, 5, 2)):
        decoded = decode(encode_npy(array[::-1]), Decoding(array.shape[2]))
        np.testing.assert_array_equal(decoded, array[::-1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            VALUES[:, :, :2],
            r"float32 \[5, 6, 2\]: expected \[h, w, 3\] since channels=3",
        ),
        (VALUES.astype(complex), r"complex128: expected integers of 8 .*astype"),
        (np.full((5, 6, 3), 2**31), r"int64 values from 2147483648 to 2147483648: exp"),
        (VALUES[None], r"shape \[1, 5, 6, 3\]: expected one image.*as the data set"),
        (VALUES[0, 0], r"shape \[3\]: expected one image"),
        (np.zeros(3, [("a", "f4")]), r"dtype \[\('a', '<f4'\)\]: expected int"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(UserError, match=message) as raised:
        decode(npy(array), Decoding(3))
    assert not isinstance(raised.value, BadImage)


class Bomb:
    """A class that no file may create."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_objects_are_never_unpickled():
    objects = np.empty((1, 1, 3), object)
    objects[:] = Bomb()
    file = io.BytesIO()
    np.save(file, objects, allow_pickle=True)
    assert b"it was unpickled" in file.getvalue()
    with pytest.raises(UserError, match=r"dtype object.*never unpickled"):
        decode(file.getvalue(), Decoding(3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(VALUES)[:-1], "truncated"),
        (npy(VALUES)[:130], "truncated"),
        (npy(VALUES)[:60], "truncated"),
        (npy(VALUES)[:7], "truncated"),
        (b"\x93NUMPY\x09\x09" + npy(VALUES)[8:], "corrupt"),
        (npy(VALUES).replace(b"(5, 6, 3)", b"(5, 6, -3"), "corrupt"),
        (npy(VALUES).replace(b"(5, 6, 3), ", b"(5, 6, -3),"), "empty"),
        (npy(VALUES[:0]), "empty"),
        (npy(VALUES).replace(b"(5, 6, 3), }  ", b"(5, 6, 30**9)}"), "corrupt"),
    ],
)
def test_damaged_files_have_a_reason(data, reason):
    with pytest.raises(BadImage, match="Remove or replace the file") as raised:
        decode(data, Decoding(3))
    assert raised.value.reason == reason


def test_a_header_of_a_huge_array_takes_no_memory():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 10**9, 3)}"
    header = header.replace(b"10**9", b"1000000000").ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(BadImage, match="3,000,000,000,000,000,") as raised:
        decode(data, Decoding(3))
    assert raised.value.reason == "truncated"


EDIT = st.tuples(st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))


@settings(max_examples=300, deadline=None)
@given(st.lists(EDIT, min_size=1, max_size=4), st.integers(0, 300))
@pytest.mark.filterwarnings("ignore")  # of values that are no float32
def test_damaged_arrays_decode_or_raise_user_errors(edits, cut):
    data = npy(VALUES)
    for at, new, dropped in edits:
        data = data[:at] + new + data[at + dropped :]
    data = b"\x93NUMPY" + data[6 : len(data) - cut]
    try:
        decoded = decode(data, Decoding(3))
    except UserError:
        return
    assert decoded.ndim == 3
    assert decoded.dtype in (np.uint8, np.float32)
