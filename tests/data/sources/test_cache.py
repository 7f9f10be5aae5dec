"""Indexes that are kept between runs: damage only costs time."""

import numpy as np
import pytest

from simmim_jax.data.sources import cache

NAMES = ("folders", "times")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return the file of an index under the key "key"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arrays = {"folders": np.arange(9, dtype=np.uint8), "times": np.arange(3)}
    cache.save("key", cache._MIN_IMAGES, arrays)
    (file,) = (tmp_path / "simmim_jax" / "indexes").iterdir()
    return file


def test_an_index_is_loaded_as_it_was_saved(file):
    arrays = cache.load("key", NAMES)
    assert arrays.keys() == set(NAMES)
    assert arrays["folders"].tolist() == list(range(9))
    assert cache.load("key", (*NAMES, "more")) is None
    assert cache.load("other", NAMES) is None


def test_a_damaged_index_is_not_loaded_or_the_same(file):
    whole, expected = file.read_bytes(), cache.load("key", NAMES)
    lost = 0
    for at in range(0, len(whole), 3):
        for damaged in (
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            whole[:at] + b"\xff" + whole[at + 1 :],
        ):
            file.write_bytes(damaged)
            arrays = cache.load("key", NAMES)
            if arrays is None:
                lost += 1
                continue
            for name in NAMES:
                np.testing.assert_array_equal(arrays[name], expected[name])
    assert lost > len(whole) / 3
