"""A data set by its name: bundled, of TFDS, or a directory.

Found and read here, nothing more: the images of a source are still encoded bytes, or
raw arrays where that is how they are stored. TFDS and Pillow are imported when a set
that needs them is opened and not before: `check_source` answers in milliseconds.
"""

import difflib
import os

from simmim_jax.data.bundled_sets import BUNDLED, check_bundled, open_bundled
from simmim_jax.data.folders import check_folder, open_folder
from simmim_jax.data.packed import is_packed, open_packed
from simmim_jax.data.source import Source
from simmim_jax.data.tfds_sets import find_prepared, open_tfds


def open_source(dataset: str, split: str, *, data_dir: str = "") -> Source:
    """Open one split of a data set.

    dataset: "bundled:NAME", "tfds:NAME[/CONFIG][:VERSION]" or a directory:

    - that `python -m simmim_jax.data.pack` wrote: the splits that were packed;
    - of split folders, train/, validation/ or val/, test/: the one asked for is read;
    - of four MNIST-like files such as train-images-idx3-ubyte.gz: "train" reads
      train-*, "validation" and "test" both read t10k-*;
    - of images otherwise: those whose path hashes into one part in 20 are
      "validation" (and the one with the smallest hash, so that there is always one),
      the rest is "train". Adding images moves none of those that were there.

    Images in folders are labelled by the first folder, in sorted order; images beside
    no folder make the set unlabelled. Hidden files and folders are passed over.

    split: for TFDS any slice such as "train[:10%]"; data_dir: where TFDS sets are, by
    default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    raises: ValueError for a name or split that does not exist, FileNotFoundError for
    data that is not there.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        return open_bundled(name, split)
    if kind == "tfds":
        return open_tfds(name, split, _local("data_dir", data_dir))
    if kind == "packed":
        return open_packed(name, split)
    return open_folder(name, split)


def check_source(dataset: str, split: str, *, data_dir: str = "") -> None:
    """Raise what `open_source` would raise if the data is not there, in milliseconds.

    Looks for the first image of a folder and the description of a TFDS set, reads
    neither.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        check_bundled(name, split)
    elif kind == "tfds":
        find_prepared(name, split, _local("data_dir", data_dir))
    elif kind == "packed":
        open_packed(name, split)
    else:
        check_folder(name, split)


def _parse(dataset: str) -> tuple[str, str]:
    """Split into ("bundled" | "tfds" | "packed" | "folder", the rest)."""
    folder = _local("dataset", dataset)
    prefix, colon, name = dataset.partition(":")
    if colon and prefix in ("bundled", "tfds") and name:
        return prefix, name
    if os.path.isdir(folder):
        return ("packed" if is_packed(folder) else "folder"), folder
    expected = "expected a directory, 'tfds:NAME' or 'bundled:NAME'"
    close = difflib.get_close_matches(prefix, ("bundled", "tfds"), n=1)
    if colon and os.sep not in prefix:
        meant = f" Did you mean '{close[0]}:{name or 'NAME'}'?" if close else ""
        raise ValueError(f"dataset={dataset!r} is unknown: {expected}.{meant}")
    raise FileNotFoundError(
        f"dataset={dataset!r} is not a directory: {expected}. Bundled are "
        f"{', '.join(BUNDLED)}."
    )


def _local(field: str, path: str) -> str:
    """Expand the ~ of a path; raise ValueError if it is a URL."""
    if "://" in path:
        raise ValueError(
            f"{field}={path!r} is not a local path: data is read through the file "
            "system. Mount the bucket (Cloud Storage: gcsfuse) and name its folder."
        )
    return os.path.expanduser(path)
