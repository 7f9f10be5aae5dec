"""Files of tensors: safetensors, and PyTorch's without running what they hold.

A PyTorch file is a pickle, which may name any function to be called. PyTorch's
`weights_only` reader refuses all but tensors and plain containers; whatever else a file
asks for is an error here.
"""

import argparse
import importlib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# The tensors of a training checkpoint, by who wrote it: SimMIM and Swin; timm.
_STATE_KEYS = ("model", "state_dict")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of a file by name, and what else it holds, such as "config".

    Half-precision tensors become float32, which changes no value. FileNotFoundError,
    or ValueError for a file that is broken, holds no tensors, or cannot be read without
    running what it says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not a file: expected {SUFFIXES}.")
    tensors, rest = _reader(path)(path)
    if not tensors:
        raise ValueError(
            f"'{path}' holds no tensors: expected a state dict, or one under 'model' "
            f"or 'state_dict'. It holds {sorted(rest)}."
        )
    return {name: _widened(value) for name, value in tensors.items()}, rest


def write(path: Path, tensors: Mapping[str, np.ndarray], **rest: Any) -> None:
    """Writes a state dict; `rest` goes beside it where the format has room.

    .safetensors: metadata, all text. Else PyTorch's: {"model": tensors, **rest}.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        # transformers refuses files without "format".
        metadata = {"format": "pt"} | rest
        _require("safetensors.numpy").save_file(tensors, path, metadata=metadata)
        return
    torch = _require("torch")
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save({"model": state, **rest}, path)


def renamed(
    tensors: Mapping[str, np.ndarray], rename: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """The tensors by their new names; ValueError where two would have the same."""
    new: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if (new_name := rename(name)) in new:
            raise ValueError(
                f"{name} is {new_name}, which another tensor of the file is as well."
            )
        new[new_name] = value
    return new


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; {} where there is none, or something else in it."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _reader(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors
    if path.suffix in SUFFIXES:
        return _read_torch
    raise ValueError(f"'{path}' has the suffix '{path.suffix}': expected {SUFFIXES}.")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    safetensors = _require("safetensors")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"'{path}' is not a safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    torch = _require("torch")
    # Configs that training scripts save: what they hold, without their code.
    stand_ins = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise ValueError(
                f"'{path}' asks to run {asked[1]}, which this program never does for a "
                "file: expected tensors, plain containers and yacs configs. If you "
                "trust it, save its tensors alone where it came from: "
                "torch.save({'model': checkpoint['model']}, path)."
            ) from error
        raise ValueError(f"'{path}' is not a PyTorch file, or broken.") from error
    except (EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is not a PyTorch file, or broken: {error}") from (
            error
        )
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a dict.")
    rest = dict(content)
    state = next((rest.pop(key) for key in _STATE_KEYS if key in rest), content)
    tensors = {
        name: _to_numpy(value)
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, rest


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _widened(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind in "iub" else value.astype(np.float32)


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"this file needs {package}: pip install {package}"
        ) from error
