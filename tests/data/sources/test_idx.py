"""Folders of idx files, as MNIST has them."""

import gzip

import numpy as np
import pytest

from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 28, 28), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(6) % 3)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images[:2])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2, 1]))
    check_source(str(tmp_path), "train")
    train = open_source(str(tmp_path), "train")
    np.testing.assert_array_equal(train.images, images[..., None])
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.class_names == ("0", "1", "2")
    for split in ("test", "validation"):
        assert open_source(str(tmp_path), split).labels.tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"'extra'.*expected train"):
        check_source(str(tmp_path), "extra")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2]))
    with pytest.raises(ValueError, match=r"2 images but.*1 labels"):
        open_source(str(tmp_path), "test")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="expected an idx file"):
        open_source(str(tmp_path), "test")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    for function in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match=r"t10k-labels.*does not exist"):
            function(str(tmp_path), "test")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_damaged_idx_file_is_refused_with_its_name(suffix, tmp_path):
    names = [f"train-{part}-ubyte{suffix}" for part in ("images-idx3", "labels-idx1")]
    write_idx(tmp_path / names[0], np.zeros((6, 5, 4), np.uint8))
    write_idx(tmp_path / names[1], np.arange(6) % 3)
    for name in names:
        file = tmp_path / name
        whole_file = file.read_bytes()
        for at in range(len(whole_file)):
            for damaged in (
                whole_file[:at],
                whole_file[:at] + b"\xff" + whole_file[at + 1 :],
                whole_file[:at] + whole_file[at + 1 :],
            ):
                file.write_bytes(damaged)
                message = refusal(tmp_path)
                assert message is None or str(file) in message
        file.write_bytes(whole_file)
    assert open_source(str(tmp_path), "train").labels.tolist() == [0, 1, 2, 0, 1, 2]


def refusal(folder):
    """Return the error that opens no idx files, if it is the user's."""
    try:
        source = open_source(str(folder), "train")
        assert source.images.shape == (6, 5, 4, 1)
    except UserError as error:
        return str(error)
