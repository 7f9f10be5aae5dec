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
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from simmim_jax.errors import MissingPackageError, NotFoundError, UserError

# The tensors of a training checkpoint, by who wrote it: SimMIM and Swin; timm.
_STATE_KEYS = ("model", "state_dict")
# Of a training run, and no model's.
_TRAINING_KEYS = ("optimizer", "lr_scheduler", "scaler")
WEIGHTS = "model.safetensors"  # of a folder
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of a file by name, and what else it holds, such as "config".

    Floats become float32, which changes no value. FileNotFoundError, or ValueError for
    a file that is broken, holds no tensors or ones that float32 would round, or cannot
    be read without running what it says.
    """
    if not path.is_file():
        raise NotFoundError(f"'{path}' is not a file: expected {SUFFIXES}.")
    tensors, rest = _reader(path)(path)
    if not tensors:
        raise UserError(
            f"'{path}' holds no tensors: expected a state dict, or one under 'model' "
            f"or 'state_dict'. It holds {sorted(rest)}."
        )
    return {name: _as_float32(name, value) for name, value in tensors.items()}, rest


def write(path: Path, tensors: Mapping[str, np.ndarray], **rest: Any) -> None:
    """Writes a state dict; `rest` goes beside it where the format has room.

    .safetensors: metadata, all text. Else PyTorch's: {"model": tensors, **rest}.
    """
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with _whole(path) as temporary:
        if path.suffix == ".safetensors":
            # transformers refuses files without "format".
            metadata = {"format": "pt"} | rest
            save_file = _require("safetensors.numpy").save_file
            save_file(tensors, temporary, metadata=metadata)
        else:
            torch = _require("torch")
            state = {name: torch.tensor(value) for name, value in tensors.items()}
            torch.save({"model": state, **rest}, temporary)


def write_folder(
    path: Path, tensors: Mapping[str, np.ndarray], **contents: Mapping[str, Any]
) -> None:
    """Writes a folder of tensors, WEIGHTS, and of JSON files by name: config=…, …."""
    with _whole(path) as temporary:
        write(temporary / WEIGHTS, tensors)
        for name, content in contents.items():
            text = json.dumps(content, indent=2) + "\n"
            (temporary / f"{name}.json").write_text(text)


def renamed(
    tensors: Mapping[str, np.ndarray], rename: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """The tensors by their new names; ValueError where two would have the same."""
    new: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if (new_name := rename(name)) in new:
            raise UserError(
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


def tensor_groups(rest: Mapping[str, Any]) -> tuple[str, ...]:
    """What else of a file holds tensors and is no training state, as "model_ema"."""
    return tuple(
        name
        for name, value in rest.items()
        if name not in _TRAINING_KEYS and _holds_tensors(value)
    )


@contextmanager
def settings_of(path: Path) -> Iterator[None]:
    """ValueError that names the file, where a setting is missing or of another type."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"'{path}' lacks the setting {error}.") from error
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"'{path}' has a setting of another type than expected: {error}."
        ) from error


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary sibling of a file or folder that becomes it once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        temporary.rename(path)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return hasattr(value, "shape")


def _reader(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors
    if path.suffix in SUFFIXES:
        return _read_torch
    raise UserError(f"'{path}' has the suffix '{path.suffix}': expected {SUFFIXES}.")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    safetensors = _require("safetensors")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(f"'{path}' is not a safetensors file: {error}") from error


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
            raise UserError(
                f"'{path}' asks to run {asked[1]}, which this program never does for a "
                "file: expected tensors, plain containers and yacs configs. If you "
                "trust it, save its tensors alone where it came from: "
                "torch.save({'model': checkpoint['model']}, path)."
            ) from error
        raise UserError(f"'{path}' is not a PyTorch file, or broken.") from error
    except (EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' is not a PyTorch file, or broken: {error}") from (
            error
        )
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a dict.")
    rest = dict(content)
    key = next((key for key in _STATE_KEYS if key in rest), None)
    state = rest.pop(key) if key else content
    if not isinstance(state, Mapping):
        raise UserError(
            f"'{path}' holds a {type(state).__name__} as {key!r}: expected a dict of "
            "tensors, a state dict."
        )
    tensors = {
        name: _to_numpy(value)
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, rest if key else {n: rest[n] for n in rest if n not in tensors}


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if half else tensor).numpy()


def _as_float32(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind in "iub":
        return value
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if value.dtype == np.float64 and not np.array_equal(single, value, equal_nan=True):
        raise UserError(
            f"{name} is float64, and float32 would round it: expected float32 or less. "
            "Where that does no harm, round it in the file."
        )
    return single


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"this file needs {package}: pip install {package}"
        ) from error
