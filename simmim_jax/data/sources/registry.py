"""A data set by its name: bundled, of TFDS, or where its files are.

Found and read here, nothing more: the images of a source are still encoded bytes, or
raw arrays where that is how they are stored. TFDS, Pillow and pyarrow are imported when
a set that needs them is opened and not before: `check_source` answers in milliseconds.
"""

import difflib
import os

from simmim_jax.data.sources.archives import check_archive, find_shards, open_archives
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.bundled_sets import BUNDLED, check_bundled, open_bundled
from simmim_jax.data.sources.folders import check_folder, open_folder, open_url
from simmim_jax.data.sources.idx import idx_paths, is_idx_folder, open_idx
from simmim_jax.data.sources.manifests import (
    MANIFEST_ENDINGS,
    check_manifest,
    open_manifest,
)
from simmim_jax.data.sources.packed import is_packed, open_packed
from simmim_jax.data.sources.remote import check_url, is_url
from simmim_jax.data.sources.tfds_sets import find_prepared, open_tfds
from simmim_jax.errors import NotFoundError, UserError

_ARCHIVE_ENDINGS = (".tar", ".zip")
_COMPRESSED_ENDINGS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_source(dataset: str, split: str, *, data_dir: str = "") -> Source:
    """Open one split of a data set.

    dataset: "bundled:NAME", "tfds:NAME[/CONFIG][:VERSION]", or the path of

    - a folder of images (.jpg, .jpeg, .png, .webp, .gif, .bmp), at any depth;
    - a folder that `python -m simmim_jax.data.pack` wrote: the splits that were packed;
    - a folder of four MNIST-like files such as train-images-idx3-ubyte.gz: "train"
      reads train-*, "validation" and "test" both read t10k-*;
    - a .tar or .zip of images, read in place; a .tar within a .tar counts as a folder,
      as in ILSVRC2012_img_train.tar;
    - a folder of .tar shards: KEY.jpg may have its label in KEY.cls, a whole number;
    - a manifest: .csv or .tsv with columns path (or image, file, filename) and, if
      need be, label (or class) and split, named in the first line; .parquet with the
      same columns; .txt with a path a line, or path and label between which is a tab,
      or a space where the path does not end the line. Paths are absolute, relative to
      the manifest's folder, or URLs.

    A folder or a manifest may be at a URL that fsspec reads, such as gs:// or s3://.

    Splits are the folders train/, validation/ or val/, test/ in a folder or an archive,
    the same words in the names of shards, or the column "split". Where there are none,
    images whose path hashes into one part in 20 are "validation" (and the one with the
    smallest hash, so that there is always one), the rest is "train". Adding images
    moves none of those that were there. TFDS takes any slice such as "train[:10%]".

    Images in folders are labelled by the first folder, in sorted order; an image beside
    no folder, or a folder without images to learn from, makes the set unlabelled; the
    source says so in `unlabelled`. In a manifest whole numbers are labels as they
    are, names are numbered in sorted order. Hidden files and folders are passed over.

    data_dir: where TFDS sets are, by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    raises: ValueError for a name or split that does not exist and for files that are
    not what their ending says, FileNotFoundError for data that is not there.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        return open_bundled(name, split)
    if kind == "tfds":
        return open_tfds(name, split, _local("data_dir", data_dir))
    if kind == "packed":
        return open_packed(name, split)
    if kind == "manifest":
        return open_manifest(name, split)
    if kind == "archive":
        return open_archives([name], split, name)
    if kind == "url":
        return open_url(name, split)
    if is_idx_folder(name):
        return open_idx(name, split)
    if shards := find_shards(name):
        return open_archives(shards, split, name)
    return open_folder(name, split)


def check_source(dataset: str, split: str, *, data_dir: str = "") -> None:
    """Raise what `open_source` would raise if the data is not there, in milliseconds.

    Looks for the first image of a folder or archive, the first row of a manifest and
    the description of a TFDS set, reads nothing more. Of a URL it checks whether what
    reads it is installed, and of a manifest there the first row.
    """
    kind, name = _parse(dataset)
    if kind == "bundled":
        check_bundled(name, split)
    elif kind == "tfds":
        find_prepared(name, split, _local("data_dir", data_dir))
    elif kind == "packed":
        open_packed(name, split)
    elif kind == "manifest":
        check_manifest(name)
    elif kind == "archive":
        check_archive(name)
    elif kind == "folder":
        if is_idx_folder(name):
            idx_paths(name, split)
        elif shards := find_shards(name):
            check_archive(shards[0])
        else:
            check_folder(name, split)


def _parse(dataset: str) -> tuple[str, str]:
    """Return the kind, and the name or the path that the rest depends on."""
    prefix, colon, name = dataset.partition(":")
    if colon and prefix in ("bundled", "tfds") and name:
        return prefix, name
    path = dataset if is_url(dataset) else os.path.expanduser(dataset)
    lower = path.lower()
    if is_url(path):
        if lower.endswith((*_ARCHIVE_ENDINGS, *_COMPRESSED_ENDINGS)):
            raise UserError(
                f"dataset={dataset!r} is an archive at a URL: expected a folder or a "
                "manifest there. Copy the archive here, or mount the bucket (Cloud "
                "Storage: gcsfuse)."
            )
        check_url(path)
        if lower.endswith(MANIFEST_ENDINGS):
            return "manifest", path
        return "url", path.rstrip("/")
    if os.path.isdir(path):
        return ("packed" if is_packed(path) else "folder"), path
    if os.path.isfile(path):
        if lower.endswith(MANIFEST_ENDINGS):
            return "manifest", os.path.abspath(path)
        if lower.endswith(_ARCHIVE_ENDINGS):
            return "archive", path
        raise UserError(_unreadable(dataset))
    expected = (
        "expected a folder, a .tar or .zip, a manifest "
        f"({'/'.join(MANIFEST_ENDINGS)}), 'tfds:NAME' or 'bundled:NAME'"
    )
    close = difflib.get_close_matches(prefix, ("bundled", "tfds"), n=1)
    if colon and os.sep not in prefix:
        meant = f" Did you mean '{close[0]}:{name or 'NAME'}'?" if close else ""
        raise UserError(f"dataset={dataset!r} is unknown: {expected}.{meant}")
    raise NotFoundError(
        f"dataset={dataset!r} does not exist: {expected}. Bundled are "
        f"{', '.join(BUNDLED)}."
    )


def _unreadable(dataset: str) -> str:
    if dataset.lower().endswith(_COMPRESSED_ENDINGS):
        return (
            f"dataset={dataset!r} is compressed, so that images in it cannot be read "
            "in any order. Decompress it once, images hardly grow by it: gunzip "
            f"{dataset} (or bunzip2, unxz, unzstd), and name the .tar."
        )
    return (
        f"dataset={dataset!r} is a file of an unknown kind: expected a .tar, a .zip or "
        f"a manifest ({'/'.join(MANIFEST_ENDINGS)})."
    )


def _local(field: str, path: str) -> str:
    """Expand the ~ of a path; raise ValueError if it is a URL."""
    if is_url(path):
        raise UserError(
            f"{field}={path!r} is not a local path: ArrayRecord is read through the "
            "file system. Mount the bucket (Cloud Storage: gcsfuse) and name its "
            "folder."
        )
    return os.path.expanduser(path)
