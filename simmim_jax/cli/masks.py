"""What `simmim predict` does with a segmentation run: write masks, print shares."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simmim_jax.data.sources.paths import is_array, is_image, printable
from simmim_jax.errors import UserError
from simmim_jax.monitoring.pictures import mask_palette

if TYPE_CHECKING:  # they import JAX
    from simmim_jax.tasks.parts import Split
    from simmim_jax.tasks.segment_predict import SegmentPredictor

_COVERING = 3  # classes printed of a mask
_PALETTE = 256  # colours of a PNG's palette


def write(
    segmenter: "SegmentPredictor",
    splits: Sequence["Split"],
    folder: Path,
    plan: dict[str, Any],
) -> tuple[int, int]:
    """Write a mask of each image into `folder`, or resume, and print what they show.

    plan: what masks depend on; masks of another plan are refused, those of this one are
    not predicted again.
    returns: numbers of masks and of images left out.
    raises: UserError for a folder of another plan or with other files, and for two
    images of one mask.
    """
    from simmim_jax.tasks.parts import PLAN, begin

    if folder.exists() and not (folder / PLAN).exists() and any(folder.iterdir()):
        raise UserError(
            f"--masks='{folder}' has other files: expected a new or an empty folder, "
            "or one that this command has begun."
        )
    begin(folder, splits, plan | {"step": segmenter.step})
    taken: dict[Path, str] = {}
    left_out = 0
    for split in splits:
        for index in range(len(split.source)):
            path = ""
            try:
                example = split.source[index]
                path = example.get("path", "")
                file = folder / mask_file(split, path, index)
                is_written = file.exists()
                if not is_written:
                    mask = next(segmenter.predict([example["image"]]))
            except (OSError, UserError) as error:
                name = path or str(getattr(error, "filename", None) or "")
                reason = getattr(error, "strerror", None) or error
                print(
                    f"left out: {_name(split, name, index)}: {reason}", file=sys.stderr
                )
                left_out += 1
                continue
            name = _name(split, path, index)
            if file in taken:
                raise UserError(
                    f"{name!r} and {taken[file]!r} have the same mask, '{file}': "
                    "expected images of different names. Name other --masks for one of "
                    "them."
                )
            taken[file] = name
            if is_written:
                with Image.open(file) as image:
                    mask = np.asarray(image)
            else:
                _save(mask, file, len(segmenter.class_names))
            shown = _covered(mask, segmenter.class_names)
            print(f"{name}  {printable(str(file))}: {shown}")
    return len(taken), left_out


def _name(split: "Split", path: str, index: int) -> str:
    """Return the path of an image, or its place in a data set without paths."""
    return printable(path or f"{split.dataset} {split.name}[{index}]")


def _covered(mask: np.ndarray, names: Sequence[str]) -> str:
    """Return the classes that cover most of a mask [h w], in words."""
    shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
    most = np.argsort(-shares, kind="stable")[:_COVERING]
    return ", ".join(f"{names[i]} {shares[i]:.1%}" for i in most if shares[i])


def mask_file(split: "Split", path: str, index: int) -> Path:
    """Return where the mask of an image is written, relative to --masks.

    It has the place of the image in its data set, or beside it; without a path, its
    number.
    """
    if not path:
        return Path(split.name, f"{index:06}.png")
    inside, dataset = Path(path).name, os.path.expanduser(split.dataset)
    for root in (os.path.dirname(dataset), dataset):
        if root and path.startswith(f"{root.rstrip('/')}/"):
            inside = path[len(root) :].lstrip("/")
    if is_image(os.fsencode(inside)) or is_array(os.fsencode(inside)):
        inside = os.path.splitext(inside)[0]
    parts = [part for part in Path(inside).parts if part != ".."]  # of an archive
    return Path(*parts[:-1], f"{parts[-1]}.png")


def _save(mask: np.ndarray, file: Path, num_classes: int) -> None:
    """Write class indices [h w]: with a palette, or in 16-bit grey for many classes."""
    image = Image.fromarray(mask)
    if num_classes <= _PALETTE:
        image = Image.fromarray(mask.astype(np.uint8), mode="P")
        image.putpalette(mask_palette().ravel().tolist())
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".tmp")
    image.save(unfinished, format="PNG")
    os.replace(unfinished, file)
