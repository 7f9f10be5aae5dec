"""All formats of the converter, behind one `read` and one `write`."""

from pathlib import Path

from simmim_jax.checkpoints.convert import (
    files,
    huggingface,
    microsoft,
    settings,
    timm,
)
from simmim_jax.checkpoints.convert.model import Model
from simmim_jax.checkpoints.convert.overrides import Overrides
from simmim_jax.errors import ExistsError, NotFoundError, UserError

FORMATS = ("simmim_jax", "official", "huggingface", "timm")
# Fields of a ViT with positions that no other format stores.
_POSITIONS = ("use_sincos_pos_emb", "conv_pos_width")
# Entry of config.json that only this library has -> reader of its folders.
_FOLDERS = {"model_type": huggingface.read, "architecture": timm.read}


def read(path: Path, overrides: Overrides) -> Model:
    """Return the model in a file or folder of any format."""
    if path.is_file():
        return microsoft.read(path, overrides)
    description = path / "config.json"
    if description.is_file() and not _is_ours(path):
        content = settings.read_json(description)
        for entry, reader in _FOLDERS.items():
            if isinstance(content, dict) and entry in content:
                return reader(path, overrides)
        raise UserError(
            f"'{description}' has neither 'model_type', as those of transformers, nor "
            f"'architecture', as those of timm. {_tensors_alone(path)}"
        )
    if overrides != Overrides() and path.exists():
        raise UserError(
            f"'{path}' takes no flags but --to. Expected a file, or a folder with a "
            "config.json of transformers or timm. A workdir of ours has all settings: "
            "remove the flags."
        )
    if path.is_dir() and not _is_ours(path):
        raise NotFoundError(
            f"'{path}' has no config.json and no checkpoint in it. "
            f"{_tensors_alone(path)}"
        )
    return Model.load(path)


def is_foreign(path: Path) -> bool:
    """Whether a path has the weights of another library, and no checkpoint of ours."""
    inside = path.glob("*") if path.is_dir() and not _is_ours(path) else [path]
    return any(file.is_file() and file.suffix in files.SUFFIXES for file in inside)


def write(model: Model, path: Path, to: str, source: Path) -> list[str]:
    """Write the model in format `to`; return the names of tensors left out.

    source: file or folder that was read, for the record.
    """
    if path.exists():
        raise ExistsError(f"'{path}' exists. Choose another target, or remove it.")
    if (path.suffix in files.SUFFIXES) != (to == "official") and to != "timm":
        expected = f"a file ({files.SUFFIX_LIST})" if to == "official" else "a folder"
        raise UserError(f"target '{path}' with --to={to}: expected {expected}.")
    for name in _POSITIONS:
        if to != "simmim_jax" and model.model.get(name):
            raise UserError(
                f"config.model.{name}={model.model[name]!r}: --to={to} has no such "
                "positions. Expected a model without them, or --to=simmim_jax."
            )
    if to == "timm":
        return timm.write(model, path)
    if to == "simmim_jax":
        model.save(path, str(source))
    elif to == "official":
        microsoft.write(model, path)
    else:
        huggingface.write(model, path)
    return []


def notes(model: Model, to: str) -> list[str]:
    """Return what was assumed, and what format `to` cannot hold."""
    lost = {
        "official": microsoft.notes,
        "timm": timm.notes,
        "huggingface": huggingface.notes,
    }
    return [*model.notes, *(lost[to](model) if to in lost else [])]


def _tensors_alone(folder: Path) -> str:
    """Return what to do with a folder without a description."""
    found = sorted(p for p in folder.glob("*") if p.suffix in files.SUFFIXES)
    expected = "Expected a complete download"
    if not found:
        return f"{expected}, or the workdir of a run."
    return f"{expected}; or convert the tensors alone, `simmim convert {found[0]} …`."


def _is_ours(path: Path) -> bool:
    """Whether a folder holds a checkpoint or run of ours."""
    return any((path / name).is_dir() for name in ("params", "checkpoints"))
