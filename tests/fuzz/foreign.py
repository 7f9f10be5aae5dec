"""Checkpoints of other libraries, read by the converter."""

import contextlib
import importlib.util
import io
import shutil
from pathlib import Path

from simmim_jax.checkpoints.convert import formats
from simmim_jax.checkpoints.convert.model import Overrides
from simmim_jax.errors import UserError
from tests.convert_cases import (
    CLS_HEAD,
    PLAIN_VIT,
    SWIN,
    SWIN_HEAD,
    SWIN_V2,
    VIT,
    VIT_CLASSIFIER,
    convert,
    make,
)
from tests.fuzz.target import Target

# Model, format, and the ending of the converted file; "" for a folder.
_MODELS = {
    "official": (VIT, "official", ".safetensors"),
    "pytorch": (VIT, "official", ".pth"),
    "huggingface": (PLAIN_VIT | CLS_HEAD, "huggingface", ""),
    "huggingface swin": (SWIN | SWIN_HEAD, "huggingface", ""),
    "timm": (SWIN_V2 | SWIN_HEAD, "timm", ""),
    "timm beit": (VIT_CLASSIFIER, "timm", ""),
}


def _make(folder: Path) -> None:
    ours = folder.with_name("ours")
    for name, (model, to, ending) in _MODELS.items():
        if ending == ".pth" and not importlib.util.find_spec("torch"):
            continue
        make(ours / name, model)
        (folder / name).mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            convert(ours / name, folder / name / f"model{ending}", f"--to={to}")
    shutil.rmtree(ours)


def _read(seed: Path) -> None:
    (path,) = seed.glob("model*")
    model = formats.read(path, Overrides())
    model.params()


FOREIGN = Target(
    "foreign", _make, _read, damaged="*.*", refusals=(UserError, OSError)
)  # `simmim convert` prints both

TARGETS = (FOREIGN,)
