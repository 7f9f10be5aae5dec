"""Every format that checkpoints are converted between, behind one pair of functions."""

from pathlib import Path

from simmim_jax.checkpoints.convert import files, huggingface, microsoft, timm
from simmim_jax.checkpoints.convert.model import Given, Model
from simmim_jax.errors import ExistsError, UserError

FORMATS = ("simmim_jax", "official", "huggingface", "timm")


def read(path: Path, given: Given) -> Model:
    """The model in a file or folder of any format."""
    if path.is_file():
        return microsoft.read(path, given)
    if huggingface.is_folder(path):
        return huggingface.read(path, given)
    if timm.is_folder(path):
        return timm.read(path, given)
    if given != Given() and path.exists():
        raise UserError(
            f"'{path}' is no file, and has no config.json of transformers or timm. "
            "Where it is a workdir of ours, leave all flags but --to away: it tells "
            "all there is to know."
        )
    return Model.load(path)


def write(model: Model, path: Path, form: str, source: Path) -> list[str]:
    """Writes the model in one of FORMATS; returns the names of what was left out."""
    if path.exists():
        raise ExistsError(f"'{path}' exists: choose another name, or remove it.")
    if (path.suffix in files.SUFFIXES) != (form == "official") and form != "timm":
        kind = f"a file, {files.SUFFIXES}" if form == "official" else "a folder"
        raise UserError(f"'{path}': expected {kind}, for --to={form}.")
    if form == "timm":
        return timm.write(model, path)
    if form == "simmim_jax":
        model.save(path, str(source))
    elif form == "official":
        microsoft.write(model, path)
    else:
        huggingface.write(model, path)
    return []
