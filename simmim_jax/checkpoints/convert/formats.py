"""All formats of the converter, behind one `read` and one `write`."""

from pathlib import Path

from simmim_jax.checkpoints.convert import files, huggingface, microsoft, timm
from simmim_jax.checkpoints.convert.model import Model, Overrides
from simmim_jax.errors import ExistsError, UserError

FORMATS = ("simmim_jax", "official", "huggingface", "timm")


def read(path: Path, overrides: Overrides) -> Model:
    """Return the model in a file or folder of any format."""
    if path.is_file():
        return microsoft.read(path, overrides)
    if huggingface.is_folder(path):
        return huggingface.read(path, overrides)
    if timm.is_folder(path):
        return timm.read(path, overrides)
    if overrides != Overrides() and path.exists():
        raise UserError(
            f"'{path}' takes no flags but --to. Expected a file, or a folder with a "
            "config.json of transformers or timm. A workdir of ours has all settings: "
            "remove the flags."
        )
    return Model.load(path)


def write(model: Model, path: Path, to: str, source: Path) -> list[str]:
    """Write the model in format `to`; return the names of tensors left out.

    source: file or folder that was read, for the record.
    """
    if path.exists():
        raise ExistsError(f"'{path}' exists. Choose another target, or remove it.")
    if (path.suffix in files.SUFFIXES) != (to == "official") and to != "timm":
        expected = f"a file ({files.SUFFIX_LIST})" if to == "official" else "a folder"
        raise UserError(f"target '{path}' with --to={to}: expected {expected}.")
    if to == "timm":
        return timm.write(model, path)
    if to == "simmim_jax":
        model.save(path, str(source))
    elif to == "official":
        microsoft.write(model, path)
    else:
        huggingface.write(model, path)
    return []
