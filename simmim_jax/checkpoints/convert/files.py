"""Tensor files: safetensors, and PyTorch's without executing their code.

A PyTorch file is a pickle, which may call any function. PyTorch's `weights_only` reader
accepts only tensors and plain containers; anything else raises an error here.
"""

import argparse
import importlib
import json
import pickle
import re
import stat
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.errors import MissingPackageError, NotFoundError, UserError

# Keys of the state dict in training checkpoints: SimMIM and Swin; timm.
_STATE_KEYS = ("model", "state_dict")
_TRAINING_KEYS = ("optimizer", "lr_scheduler", "scaler")
WEIGHTS = "model.safetensors"  # in a folder
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SUFFIX_LIST = ", ".join(SUFFIXES)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of a file by name, and its other content, such as "config".

    Floats become float32 without a change of value. Raises NotFoundError, or UserError
    if the file is corrupt, has no tensors, has tensors that float32 would round, or
    would execute code.
    """
    if not path.is_file():
        raise NotFoundError(f"'{path}' is not a file. Expected {SUFFIX_LIST}.")
    tensors, rest = _reader(path)(path)
    if not tensors:
        raise UserError(
            f"'{path}' has no tensors, but {sorted(map(str, rest))}. Expected a state "
            "dict, or one under 'model' or 'state_dict'."
        )
    return {name: _as_float32(name, value) for name, value in tensors.items()}, rest


def write(path: Path, tensors: Mapping[str, np.ndarray], **rest: Any) -> None:
    """Write a state dict, and `rest` beside it.

    In a .safetensors file, `rest` is the metadata and must be text. A PyTorch file is
    {"model": tensors, **rest}.
    """
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with _atomic(path) as temporary:
        if path.suffix == ".safetensors":
            # transformers rejects files without "format".
            metadata = {"format": "pt"} | rest
            save_file = _import("safetensors.numpy").save_file
            save_file(tensors, temporary, metadata=metadata)
            # safetensors gives its files mode 0600.
            temporary.chmod(_default_mode(temporary.parent))
        else:
            torch = _import("torch")
            state = {name: torch.tensor(value) for name, value in tensors.items()}
            torch.save({"model": state, **rest}, temporary)


def write_folder(
    path: Path, tensors: Mapping[str, np.ndarray], **contents: Mapping[str, Any]
) -> None:
    """Write a folder of tensors (WEIGHTS) and JSON files, such as config=…."""
    with _atomic(path) as temporary:
        write(temporary / WEIGHTS, tensors)
        for name, content in contents.items():
            text = json.dumps(content, indent=2) + "\n"
            (temporary / f"{name}.json").write_text(text)


def rename(
    tensors: Mapping[str, np.ndarray], new_name: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """Return the tensors under new names; raise UserError if two names coincide."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if (new := new_name(name)) in renamed:
            raise UserError(
                f"{name} becomes {new}, and so does another tensor of the file. "
                f"Expected distinct names: add --leave_out='^{re.escape(name)}$'."
            )
        renamed[new] = value
    return renamed


def tensor_groups(rest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return other keys with tensors, without training state, such as "model_ema"."""
    return tuple(
        name
        for name, value in rest.items()
        if name not in _TRAINING_KEYS and _holds_tensors(value)
    )


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes the file or folder once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        temporary.rename(path)


def _default_mode(folder: Path) -> int:
    """Return the mode of new files, which the user's umask decides."""
    probe = folder / "mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return stat.S_IMODE(mode)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return hasattr(value, "shape")


def _reader(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors
    if path.suffix in SUFFIXES:
        return _read_torch
    raise UserError(f"'{path}' has the suffix '{path.suffix}'. Expected {SUFFIX_LIST}.")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    safetensors = _import("safetensors")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(
            f"'{path}' is not a safetensors file, or corrupt: {error}. Download or "
            "save it again."
        ) from error


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    torch = _import("torch")
    _check_zip(path)
    # Configs saved by training scripts are read as plain data, without their code.
    stand_ins = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        if called:
            raise UserError(
                f"'{path}' would execute {called[1]}; code in files is never executed. "
                "Expected tensors, plain containers and yacs configs. If you trust the "
                "file, save its tensors alone with the code that wrote it: "
                "torch.save({'model': checkpoint['model']}, path)."
            ) from error
        raise _corrupt(path) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _corrupt(path, f": {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"'{path}' is a {type(content).__name__}. Expected a dict with a state "
            "dict under 'model' or 'state_dict', or a state dict."
        )
    rest = dict(content)
    key = next((key for key in _STATE_KEYS if key in rest), None)
    state = rest.pop(key) if key else content
    if not isinstance(state, Mapping):
        raise UserError(
            f"'{path}' has a {type(state).__name__} under {key!r}. Expected a state "
            "dict: tensors by name."
        )
    tensors = {
        name: _to_numpy(name, value)
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, rest if key else {n: rest[n] for n in rest if n not in tensors}


def _check_zip(path: Path) -> None:
    """Raise UserError if a checksum in a zipped PyTorch file does not hold.

    torch.load does not check them. Files written without checksums have zeros instead.
    """
    if not zipfile.is_zipfile(path):
        return  # PyTorch's format before version 1.6
    try:
        with zipfile.ZipFile(path) as archive:
            has_checksums = any(member.CRC for member in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise _corrupt(path, f": {error}") from error
    if damaged:
        raise _corrupt(path, f": the checksum of {damaged} does not hold")


def _corrupt(path: Path, reason: str = "") -> UserError:
    return UserError(
        f"'{path}' is not a PyTorch file, or corrupt{reason}. Download or save it "
        "again."
    )


def _to_numpy(name: str, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    kind = str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized or kind != "strided" or tensor.is_meta:
        raise UserError(
            f"{name} is a quantized, sparse or empty tensor ({tensor.dtype}, {kind}). "
            "Expected numbers: save the weights before they are quantized."
        )
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if half else tensor).numpy()


def _as_float32(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind in "iub":
        return value
    if value.dtype.kind == "c":
        raise UserError(
            f"{name} is complex. Expected real weights: leave it out with "
            f"--leave_out='^{re.escape(name)}$'."
        )
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if value.dtype == np.float64 and not np.array_equal(single, value, equal_nan=True):
        raise UserError(
            f"{name} is float64, and float32 would round it. Expected float32 or less: "
            "if rounding does no harm, save tensor.float() in the file."
        )
    return single


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"{package}, which this format needs, is missing: "
            "pip install 'simmim_jax[convert]'."
        ) from error
