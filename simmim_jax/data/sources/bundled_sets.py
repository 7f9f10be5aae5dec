"""The small data sets that come with the package."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from simmim_jax.data.sources.base import NO_LABEL, ArraySource, Source
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.idx import open_idx
from simmim_jax.data.sources.manifests import open_manifest
from simmim_jax.data.sources.paths import NAME_A_SPLIT
from simmim_jax.data.sources.text import open_lines
from simmim_jax.errors import UserError

_BUNDLED_DIR = pathlib.Path(__file__).parents[1] / "bundled"
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIX = "bundled:"
_FASHION_TRAIN = 8_000  # the first of 10,000 images; the rest is for validation
_CLIMATE_PATCH = 64  # pixels


@dataclasses.dataclass(frozen=True)
class MaskedArrays:
    """Labelled images whose pixels above 0 have the class of the image.

    Class 0 is the background, which comes before those of the images.
    """

    source: ArraySource
    class_names: tuple[str, ...] = ()
    labels: None = None

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the classes of pixels."""
        return ("background", *self.source.class_names)

    @property
    def has_mask(self) -> np.ndarray:
        """bool [n]."""
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example = self.source[index]
        mask = (example["image"].max(axis=-1) > 0) * np.uint8(example["label"] + 1)
        return {"image": example["image"], "label": NO_LABEL, "mask": mask}


@dataclasses.dataclass(frozen=True)
class _Bundled:
    splits: tuple[str, ...]
    load: Callable[[str], Source]


def _load_fashion_mnist_10k(split: str) -> ArraySource:
    whole = open_idx(str(_BUNDLED_DIR), "test")
    part = slice(_FASHION_TRAIN) if split == "train" else slice(_FASHION_TRAIN, None)
    assert whole.labels is not None
    return ArraySource(whole.images[part], whole.labels[part], _FASHION_CLASSES)


def _load_fashion_masks(split: str) -> MaskedArrays:
    """Take 200 images for validation: that of pixels takes long."""
    source = _load_fashion_mnist_10k(split)
    if split != "train":
        assert source.labels is not None
        source = ArraySource(source.images[:200], source.labels[:200], _FASHION_CLASSES)
    return MaskedArrays(source)


def _load_climate(split: str) -> ArraySource:
    """Cut patches out of one map, where scripts/build_climate.py chose them."""
    from simmim_jax.data.codecs.base import Decoding
    from simmim_jax.data.codecs.registry import decode

    file = (_BUNDLED_DIR / "climate-map.jpg").read_bytes()
    world = decode(file, Decoding(channels=3))
    with np.load(_BUNDLED_DIR / "climate-patches.npz", allow_pickle=False) as patches:
        y, x = patches[f"{split}_corners"].T
        window = (_CLIMATE_PATCH, _CLIMATE_PATCH)
        # uint8 [h, w, c, 64, 64], a view: indexing copies the chosen windows alone.
        windows = np.lib.stride_tricks.sliding_window_view(world, window, axis=(0, 1))
        images = np.ascontiguousarray(windows[y, x].transpose(0, 2, 3, 1))
        if split == "unlabelled":
            return ArraySource(images, None, ())
        labels = patches[f"{split}_labels"].astype(np.int32)
        return ArraySource(images, labels, tuple(patches["class_names"].tolist()))


def _load_speech(split: str) -> Source:
    """Open whole sentences with their text, or parts of them with a phone each."""
    name, _, of = split.partition("_")
    table = f"{of or 'sentences'}.csv"
    return open_manifest(str(_BUNDLED_DIR / "speech" / table), name)


def _load_languages(split: str) -> Source:
    return open_lines(str(_BUNDLED_DIR / "languages.tsv"), split)


BUNDLED = {
    "climate": _Bundled(("train", "validation", "unlabelled"), _load_climate),
    "fashion_mnist_10k": _Bundled(("train", "validation"), _load_fashion_mnist_10k),
    "fashion_masks": _Bundled(("train", "validation"), _load_fashion_masks),
    "speech": _Bundled(
        ("train", "validation", "train_phones", "validation_phones"), _load_speech
    ),
    "languages": _Bundled(("train", "validation"), _load_languages),
}


def open_bundled(name: str, split: str) -> Source:
    """Open one split of a data set of `BUNDLED`; raises UserError if it is unknown."""
    check_bundled(name, split)
    return BUNDLED[name].load(split)


def check_bundled(name: str, split: str) -> None:
    """Raise UserError, which lists the names, for an unknown data set or split."""
    if name not in BUNDLED:
        raise UserError(
            f"dataset='bundled:{name}' does not exist: expected one of "
            f"{', '.join(f'bundled:{known}' for known in BUNDLED)}."
        )
    if split not in BUNDLED[name].splits:
        raise UserError(
            f"split={split!r} of 'bundled:{name}' does not exist: expected one of "
            f"{', '.join(BUNDLED[name].splits)}. {NAME_A_SPLIT}"
        )


def _name(place: str) -> str:
    return place.removeprefix(_PREFIX)


FORMAT = Format(
    f"'{_PREFIX}NAME' ({', '.join(BUNDLED)})",
    lambda place: place.startswith(_PREFIX) and place != _PREFIX,
    lambda place, split: check_bundled(_name(place), split),
    lambda place, split: open_bundled(_name(place), split),
    prefix="bundled",
)
