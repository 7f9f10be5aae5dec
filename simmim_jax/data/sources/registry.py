"""Data sets by name: bundled, from TFDS, or at a path or URL.

A new format is one module with a `Format` and one line in `FORMATS`. TFDS, Pillow and
pyarrow are imported when a data set that needs them is opened, so that `check_source`
answers in milliseconds.
"""

import contextlib
import difflib
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from simmim_jax.data.sources import (
    archives,
    audio_folders,
    bundled_sets,
    dicom_folders,
    folders,
    hdf5,
    huggingface,
    idx,
    lmdb_sets,
    manifests,
    mask_folders,
    netcdf,
    npy,
    npz,
    packed,
    tfds_sets,
    tfrecord,
    tiff_files,
    volumes,
    zarr_arrays,
)
from simmim_jax.data.sources.base import Source
from simmim_jax.data.sources.endings import count_endings, ways_in
from simmim_jax.data.sources.format import Format
from simmim_jax.data.sources.mixtures import Names, mix, parse_names
from simmim_jax.data.sources.paths import ALL, TRAIN, VALIDATION
from simmim_jax.data.sources.remote import MAX_BYTES, is_url
from simmim_jax.data.sources.targets import Wanted
from simmim_jax.errors import NotFoundError, UserError

# The first match opens a data set: special folders stand before folders of images.
FORMATS: tuple[Format, ...] = (
    bundled_sets.FORMAT,
    tfds_sets.FORMAT,
    manifests.FORMAT,
    archives.ARCHIVE,
    npy.ARRAY_FILE,
    npz.FILE,
    tfrecord.FILE,
    hdf5.FORMAT,
    netcdf.FORMAT,
    zarr_arrays.FORMAT,
    packed.FORMAT,
    idx.FORMAT,
    lmdb_sets.FORMAT,
    mask_folders.FORMAT,
    huggingface.SAVED,
    archives.SHARDS,
    npy.ARRAY_FOLDER,
    npz.FOLDER,
    volumes.DICOM_FRAMES,
    volumes.VOLUMES,
    tiff_files.FORMAT,
    hdf5.FOLDER,
    netcdf.FOLDER,
    huggingface.PARQUET_FOLDER,
    tfrecord.FOLDER,
    audio_folders.SPEECH,
    audio_folders.FOLDER,
    dicom_folders.FORMAT,
    folders.URL,
    folders.FOLDER,
)
_registered: list[Format] = []


def register(format: Format) -> Format:
    """Add a format, tried before all others; one of the same name is replaced."""
    _registered[:] = [format, *(f for f in _registered if f.name != format.name)]
    return format


def open_source(
    dataset: Names,
    split: str,
    *,
    data_dir: str = "",
    max_bytes: int = MAX_BYTES,
    formats: tuple[Format, ...] = (),
    wanted: Wanted | None = None,
) -> Source:
    """Open one split of a data set.

    dataset: "bundled:NAME", "tfds:NAME[/CONFIG][:VERSION]", or the path of

    - a folder of images (.jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff,
      .dcm), at any depth;
    - a folder with images/ and masks/, files of equal names but for the ending; both
      may also stand in train/ and validation/. Only segmentation reads the masks;
      classes.txt beside them names their classes, one a line;
    - a folder that `simmim pack` wrote, with the splits that were packed;
    - a folder of four MNIST-like files such as train-images-idx3-ubyte.gz: "train"
      reads train-*, "validation" and "test" both read t10k-*;
    - a .tar or .zip of images, or of sounds alone, without unpacking it; a .tar inside
      a .tar counts as a folder, as in ILSVRC2012_img_train.tar;
    - a folder of .tar shards: KEY.jpg may have its label in KEY.cls, a whole number;
    - a .parquet file of images, a folder of such files, or a folder that
      `save_to_disk` of Hugging Face's datasets wrote: images are struct<bytes, path> or
      bytes, class names are in the schema, splits in the names of files
      (train-00000-of-00002.parquet) or in dataset_dict.json;
    - a .tfrecord file of tf.train.Example, or a folder of such files, with the features
      image/encoded or image, and image/class/label or label; splits as above;
    - an LMDB environment of encoded images by key (folders in keys are classes), or of
      image-000000001 and label-000000001; or a folder with one for each split;
    - a folder of .npy files and no images: one array [h, w] or [h, w, c] each, uint8 or
      float32 (float16 and float64 are converted to float32);
    - a .npy file [n, h, w, c] of such images, memory-mapped; labels int [n] are read
      from the neighbouring NAME_labels.npy, if it exists;
    - an .npz file of images [n, h, w] or [n, h, w, c] named images, image or x, or the
      only ones, or those behind a colon (FILE:NAME); labels int [n] are named labels,
      label or y, and train_images or x_train are splits; a folder of .npz files of one
      image [h, w] or [h, w, c] each, or several [n, h, w, c];
    - a .nii or .nii.gz volume, or a folder of such files: each slice is an image,
      across the axis behind a colon (PATH:sagittal, coronal or axial, the default);
    - a .dcm file, or FOLDER:frames: each frame is an image;
    - a folder of DICOM files without endings;
    - a .h5 or .hdf5 file of images [n, h, w] or [n, h, w, c] in its only such data set,
      or in the one behind a colon (FILE:NAME); labels int [n] in NAME_labels or labels;
    - a folder of .h5 files of one image [h, w] or [h, w, c] each, or several
      [n, h, w, c]; a folder of NetCDF files;
    - a Zarr array or group, also OME-Zarr: images as in .h5 files, or windows of large
      planes (PATH:NAME@SIDE in pixels, by default 512);
    - a NetCDF file (.nc, .cdf): all variables, or those behind a colon (FILE:SST,AIRT),
      are channels; #month behind it labels each step by its month;
    - a folder of sounds (.wav, .flac, .ogg, .opus, .mp3) without images and arrays, as
      of images; one in the layout of LJSpeech, Kaldi or LibriSpeech, whose examples
      have a "text";
    - a manifest: .csv or .tsv whose first line names the columns path (or image, file,
      filename) and optionally label (or class) and split; .parquet with the same
      columns; .txt with one path per line, or a path and a label separated by a tab, or
      by a space if the line does not end like an image file. Paths are absolute,
      relative to the manifest's folder, or URLs. Of sounds it may also have the
      columns text, and start and end of a part [seconds].

    Several sets are one as a list, or as its text: "['/a', '/b']", or with the share of
    each in an epoch, "[('/a', 0.7), ('/b', 0.3)]". Their classes are merged by name;
    `mix` of `mixtures` has more.

    A folder of images or a manifest may be at a URL that fsspec reads, such as gs:// or
    s3://; `PROTOCOLS` of `remote` has all. `register` adds formats.

    Splits are the folders train/, validation/ or val/, test/ in a folder or archive,
    the same words in the names of shards, or the column "split". Without them, images
    whose path (in a .npy file: index) hashes into one part in 20 are "validation", and
    the rest is "train". The image with the smallest hash is always in "validation". New
    images do not move others between splits. "all" has both, in their order. TFDS
    takes any slice, as in "train[:10%]".

    The label of an image in a folder is the position of its first folder in sorted
    order. An image outside of class folders, or a class folder without images to train
    on, makes the data set unlabelled, as the source's `unlabelled` explains. Manifests
    keep labels that are whole numbers, and number names in sorted order; images without
    one have the label -1, which fine-tuning leaves out. Hidden files and folders are
    skipped.

    data_dir: folder of TFDS data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets;
    max_bytes: of an image's file; larger ones are bad images; formats: tried before
    all others, such as those of `text`; wanted: several classes or numbers of an image,
    of manifests and .npz files; other sets, and several as one, have none.
    raises: UserError for an unknown name or split and for files that are not of their
    format, NotFoundError for data that does not exist.
    """
    if (listed := parse_names(dataset)) is not None:
        names, weights = listed
        return mix(
            [
                open_source(
                    name,
                    split,
                    data_dir=data_dir,
                    max_bytes=max_bytes,
                    formats=formats,
                )
                for name in names
            ],
            weights,
        )
    place, format = _find(str(dataset), formats)
    options: dict[str, Any] = {"data_dir": data_dir} if format.takes_data_dir else {}
    if format.takes_max_bytes:
        options["max_bytes"] = max_bytes
    if format.takes_wanted:
        options["wanted"] = wanted
    return format.open(place, split, **options)


def open_splits(
    dataset: Names,
    splits: Sequence[str] = (),
    *,
    data_dir: str = "",
    formats: tuple[Format, ...] = (),
) -> dict[str, Source]:
    """Open these splits of a data set, or all of "train", "validation" and "test".

    A test split that is the validation split by another name, as MNIST's is, is left
    out.
    raises: UserError if a named split, or every one, cannot be opened.
    """
    opened = functools.partial(open_source, dataset, data_dir=data_dir, formats=formats)
    if splits:
        return {each: opened(each) for each in splits}
    found: dict[str, Source] = {}
    refused = None
    for split in (TRAIN, VALIDATION, "test"):
        try:
            source = opened(split)
        except UserError as error:
            refused = refused or error
            continue
        if not _is_alias(source, found.get(VALIDATION)):
            found[split] = source
    if not found:
        assert refused is not None
        raise refused
    return found


def open_all(
    dataset: Names,
    splits: Sequence[str] = (),
    *,
    data_dir: str = "",
    formats: tuple[Format, ...] = (),
) -> dict[str, Source]:
    """Open these splits; without names, "all" of a set that has none, or those it has.

    raises: as `open_splits`.
    """
    options: dict[str, Any] = {"data_dir": data_dir, "formats": formats}
    if not splits:
        with contextlib.suppress(UserError):
            return {ALL: open_source(dataset, ALL, **options)}
    return open_splits(dataset, splits, **options)


def _is_alias(source: Source, validation: Source | None) -> bool:
    if validation is None or len(source) != len(validation):
        return False
    try:
        one, other = source[0]["image"], validation[0]["image"]
    except (UserError, OSError):
        return False
    if isinstance(one, bytes):
        return one == other
    return bool(np.array_equal(one, other))


def is_dataset(name: str, formats: tuple[Format, ...] = ()) -> bool:
    """Whether a name is that of a data set, by its form and by what is there.

    formats: as in `open_source`.
    """
    place = name if is_url(name) else os.path.expanduser(name)
    return any(format.matches(place) for format in (*formats, *_registered, *FORMATS))


def check_source(
    dataset: Names,
    split: str,
    *,
    data_dir: str = "",
    formats: tuple[Format, ...] = (),
) -> None:
    """Raise the errors of `open_source` for missing data, in milliseconds.

    This looks for the first image of a folder or archive, the first row of a manifest,
    or the description of a TFDS data set, and reads no more. For a folder at a URL it
    checks whether a package that reads it is installed.
    """
    if (listed := parse_names(dataset)) is not None:
        for name in listed[0]:
            check_source(name, split, data_dir=data_dir, formats=formats)
        return
    place, format = _find(str(dataset), formats)
    options = {"data_dir": data_dir} if format.takes_data_dir else {}
    format.check(place, split, **options)


def _find(dataset: str, first: tuple[Format, ...] = ()) -> tuple[str, Format]:
    """Return the place that a data set's name stands for, and its format."""
    place = dataset if is_url(dataset) else os.path.expanduser(dataset)
    formats = (*first, *_registered, *FORMATS)
    for format in formats:
        if format.matches(place):
            return place, format
    if os.path.isfile(place):
        *names, last = reversed([each.name for each in formats if not each.prefix])
        raise UserError(
            f"dataset={dataset!r} has an unknown file format: expected "
            f"{', '.join(names)}, or {last}." + ways_in(count_endings([place]))
        )
    prefixed = ", ".join(each.name for each in formats if each.prefix)
    expected = f"expected a path that exists, a URL, or one of {prefixed}"
    prefix, colon, name = dataset.partition(":")
    if colon and os.sep not in prefix:
        prefixes = [format.prefix for format in formats if format.prefix]
        close = difflib.get_close_matches(prefix, prefixes, n=1)
        meant = f" Did you mean '{close[0]}:{name or 'NAME'}'?" if close else ""
        raise UserError(f"dataset={dataset!r} is unknown: {expected}.{meant}")
    raise NotFoundError(f"dataset={dataset!r} does not exist: {expected}.")
