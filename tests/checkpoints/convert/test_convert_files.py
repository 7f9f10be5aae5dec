"""Tensor files, whose code is never executed."""

import argparse
import os
import stat
import sys
from collections import OrderedDict

import numpy as np
import pytest

from simmim_jax.checkpoints.convert import files

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.index": np.arange(4, dtype=np.int64),
}


def assert_tensors(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


class Executes:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ---- safetensors ---------------------------------------------------------------------


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    transposed = TENSORS | {"a.weight": TENSORS["a.weight"].T}
    files.write(path, transposed, config="{}")
    tensors, rest = files.read(path)
    assert_tensors(tensors, transposed)
    assert rest == {"format": "pt", "config": "{}"}


def test_half_precision_becomes_float32(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    import ml_dtypes

    values = np.array([1.5, -0.0078125, 3e4])
    halves = {
        "half": values.astype(np.float16),
        "bfloat": values.astype(ml_dtypes.bfloat16),
    }
    safetensors.save_file(halves, tmp_path / "x.safetensors")
    found = files.read(tmp_path / "x.safetensors")[0]
    assert_tensors(found, {k: v.astype(np.float32) for k, v in halves.items()})


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_float64_that_float32_would_round_raises(suffix, tmp_path):
    if suffix == "pth":
        pytest.importorskip("torch")
    path = tmp_path / f"x.{suffix}"
    exact = np.array([1.5, np.nan, np.inf])
    files.write(path, {"x": exact})
    assert_tensors(files.read(path)[0], {"x": exact.astype(np.float32)})
    for value in (1 + 2**-40, 1e300):
        files.write(path, {"y": np.array([value])})
        with pytest.raises(ValueError, match="y is float64, and float32 would round"):
            files.read(path)


def test_a_failed_folder_leaves_nothing_behind(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_folder(path, TENSORS, config={"x": {1, 2}})
    assert not list(tmp_path.iterdir())
    files.write_folder(path, TENSORS, config={"x": 1}, other={})
    assert {p.name for p in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "other.json",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_corrupt_files_raise(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no such header")
    with pytest.raises(ValueError, match=r"x\.safetensors' is not a safetensors file"):
        files.read(path)
    with pytest.raises(FileNotFoundError, match="gone"):
        files.read(tmp_path / "gone.pth")
    (tmp_path / "x.npz").touch()
    with pytest.raises(ValueError, match=r"suffix '\.npz'\. Expected"):
        files.read(tmp_path / "x.npz")


def test_a_missing_package_raises_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    says = r"^torch, .*is missing: pip install 'simmim_jax\[convert\]'\.$"
    with pytest.raises(ImportError, match=says):
        files.write(tmp_path / "x.pth", TENSORS)


def test_names_that_coincide_raise():
    renamed = files.rename(TENSORS, str.upper)
    assert list(renamed) == ["A.WEIGHT", "A.INDEX"]
    with pytest.raises(ValueError, match=r"a\.index becomes x, and so does another"):
        files.rename(TENSORS, lambda name: "x")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_mode_that_the_umask_says(umask, suffix, tmp_path):
    if suffix == "pth":
        pytest.importorskip("torch")
    before = os.umask(umask)
    try:
        files.write(tmp_path / f"x.{suffix}", TENSORS)
        files.write_folder(tmp_path / "folder", TENSORS, config={})
    finally:
        os.umask(before)
    for path in (tmp_path / f"x.{suffix}", *(tmp_path / "folder").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask
    assert {p.name for p in tmp_path.iterdir()} == {f"x.{suffix}", "folder"}


# ---- PyTorch -------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def state(torch):
    return OrderedDict((n, torch.from_numpy(v)) for n, v in TENSORS.items())


def test_pytorch_round_trip(tmp_path, torch):
    files.write(tmp_path / "x.pth", TENSORS, config={"DATA": {"IMG_SIZE": 4}})
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert set(content) == {"model", "config"}
    tensors, rest = files.read(tmp_path / "x.pth")
    assert_tensors(tensors)
    assert rest == {"config": {"DATA": {"IMG_SIZE": 4}}}


def test_a_failed_file_leaves_nothing_behind(tmp_path, torch):
    with pytest.raises(AttributeError, match="pickle"):
        files.write(tmp_path / "x.pth", TENSORS, config=lambda: 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_keys_of_the_state_dict(key, tmp_path, torch):
    content = {key: state(torch), "epoch": 3} if key else state(torch)
    torch.save(content, tmp_path / "x.bin")
    assert_tensors(files.read(tmp_path / "x.bin")[0])


def test_other_groups_of_tensors_are_found(tmp_path, torch):
    training = {name: {"state": {0: state(torch)}} for name in files._TRAINING_KEYS}
    averages = {"model_ema": state(torch), "state_dict": {"module": state(torch)}}
    content = {"model": state(torch), "epoch": 3, "args": {}} | averages | training
    torch.save(content, tmp_path / "x.pth")
    rest = files.read(tmp_path / "x.pth")[1]
    assert set(files.tensor_groups(rest)) == set(averages)
    torch.save(state(torch) | {"ema": state(torch)}, tmp_path / "x.pth")
    rest = files.read(tmp_path / "x.pth")[1]
    assert files.tensor_groups(rest) == ("ema",)


def test_parameters_views_and_half_precision(tmp_path, torch):
    values = torch.tensor([1.5, -2.0])
    content = {
        "parameter": torch.nn.Parameter(values),
        "bfloat": values.bfloat16(),
        "view": torch.stack([values, values]).T[0],
    }
    torch.save(content, tmp_path / "x.pt")
    found = files.read(tmp_path / "x.pt")[0]
    expected = np.array([1.5, -2.0], np.float32)
    assert_tensors(
        found, {"parameter": expected, "bfloat": expected, "view": expected[[0, 0]]}
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_yacs_configs_are_read_without_yacs(zipped, tmp_path, torch):
    config_node = pytest.importorskip("yacs.config").CfgNode
    config = config_node({"MODEL": {"TYPE": "swin", "X": None}, "BETAS": (0.9, 0.999)})
    config.freeze()
    args = argparse.Namespace(lr=0.1)
    content = {"model": state(torch), "config": config, "args": args, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    tensors, rest = files.read(tmp_path / "x.pth")
    assert_tensors(tensors)
    assert rest["config"] == {
        "MODEL": {"TYPE": "swin", "X": None},
        "BETAS": (0.9, 0.999),
    }
    assert (
        type(rest["config"]["MODEL"]) is OrderedDict
    )  # not a CfgNode, which has methods
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_files_is_not_executed(zipped, tmp_path, torch):
    content = {"model": state(torch), "config": Executes(str(tmp_path / "ran"))}
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"would execute posix\.mkdir; code in files is never"
    ):
        files.read(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the file does contain code


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"epoch": 3}, r"has no tensors, but \['epoch'\]"),
        ([1, 2], "is a list. Expected a dict"),
        ({"model": [1, 2]}, "has a list under 'model'. Expected a state dict"),
    ],
)
def test_files_without_tensors_raise(content, complaint, tmp_path, torch):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=complaint):
        files.read(tmp_path / "x.pth")


def test_a_changed_byte_is_found_by_its_checksum(tmp_path, torch):
    path = tmp_path / "x.pth"
    torch.save({"model": state(torch)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(TENSORS["a.weight"].tobytes())] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # does not check
    with pytest.raises(
        ValueError, match=r"x\.pth' is not .* or corrupt: the checksum of x/data/0 does"
    ):
        files.read(path)


def test_files_written_without_checksums_are_read(tmp_path, torch):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": state(torch)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_tensors(files.read(tmp_path / "x.pth")[0])


@pytest.mark.parametrize("kind", ["complex", "sparse", "quantized"])
def test_tensors_that_are_no_plain_numbers_raise(kind, tmp_path, torch):
    make = {
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
        "sparse": lambda: torch.eye(2).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(
            torch.ones(2), 0.1, 0, torch.qint8
        ),
    }
    torch.save({"x": make[kind]()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x is .*{kind}"):
        files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_corrupt_pytorch_files_raise(data, tmp_path, torch):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.pth' is not a PyTorch file, or corrupt"):
        files.read(tmp_path / "x.pth")
