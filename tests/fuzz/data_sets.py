"""Data sets of every format, opened and read as a run does."""

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import unittest.mock
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_jax.cli import pack
from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.pack.folder import begin
from simmim_jax.data.sources import cache, packed
from simmim_jax.data.sources.archive_index import index_archive
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.data.sources.folders import list_files
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.data.views.image import CenterCropView
from simmim_jax.errors import UserError
from tests.fuzz.images import read_examples
from tests.fuzz.target import Target, write
from tests.images import encoded, gradient, npy

_VIEW = CenterCropView(
    size=(8, 8),
    decoding=Decoding(3),
    interpolation="bilinear",
    crop_fraction=1.0,
    dtype="float32",
)
_CLASSES = ("ant", "bee")


def read_splits(dataset: str, splits: tuple[str, ...], data_dir: str = "") -> None:
    """Check, open and read these splits of a data set, and check its labels."""
    refused = None
    for split in splits:
        try:
            check_source(dataset, split, data_dir=data_dir)
            source = open_source(dataset, split, data_dir=data_dir)
            labels = source.labels
            if labels is not None:
                assert labels.shape == (len(source),), labels.shape
                assert labels.dtype.kind == "i", labels.dtype
                assert labels.min() >= NO_LABEL, labels
                assert labels.max() < len(source.class_names), labels
            assert all(isinstance(name, str) for name in source.class_names)
            read_examples(source, _VIEW)
        except UserError as error:
            refused = error
    if refused:
        raise refused


def _image(index: int) -> bytes:
    return encoded(
        Image.fromarray(gradient(6 + index, 9, 3)), quality=50, format="JPEG"
    )


def _examples(splits: tuple[str, ...] = ("train", "val")) -> dict[str, bytes]:
    """Return small images in folders of splits and classes, by path."""
    names = [
        f"{split}/{name}/{i}.jpg"
        for split in splits
        for name in _CLASSES
        for i in (0, 1)
    ]
    return {name: _image(i) for i, name in enumerate(names)}


# ---- Archives ------------------------------------------------------------------------


def _zip(files: dict[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def _tar(files: dict[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return file.getvalue()


def _make_archives(folder: Path) -> None:
    files = _examples()
    numbered = {
        name: content
        for i in range(4)
        for name, content in ((f"{i}.jpg", _image(i)), (f"{i}.cls", b"%d" % (i % 2)))
    }
    inner = {
        f"{name}.tar": _tar({f"{i}.jpg": _image(i) for i in range(3)})
        for name in _CLASSES
    }
    link = ("train/ant/9.jpg", "train/ant/0.jpg")
    write(folder / "zip", {"set.zip": _zip(files, zipfile.ZIP_STORED)})
    write(folder / "zip deflated", {"set.zip": _zip(files, zipfile.ZIP_DEFLATED)})
    write(folder / "zip labels", {"set.zip": _zip(numbered, zipfile.ZIP_DEFLATED)})
    write(folder / "tar", {"set.tar": _tar(files, (link,))})
    write(folder / "tar in tar", {"set.tar": _tar(inner)})
    shards = {"train-0.tar": _tar(numbered), "val-0.tar": _tar(numbered)}
    write(folder / "shards", {f"set/{name}": shard for name, shard in shards.items()})


def _read_one(seed: Path) -> None:
    (dataset,) = seed.glob("set*")
    read_splits(str(dataset), ("train", "validation"))


ARCHIVE = Target("archive", _make_archives, _read_one, damaged="*.*")


# ---- Manifests -----------------------------------------------------------------------


def _make_manifests(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    files = {f"{i}.jpg": _image(i) for i in range(4)}
    rows = [
        (f"{i}.jpg", _CLASSES[i % 2], ("train", "validation")[i // 2]) for i in range(4)
    ]
    table = [("path", "label", "split"), *rows]
    parquet = io.BytesIO()
    columns = dict(zip(table[0], map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
    numbers = pyarrow.table({"file": columns["path"] * 20, "label": [0, 1, 2, 3] * 20})
    compressed = io.BytesIO()
    pyarrow.parquet.write_table(numbers, compressed, compression="zstd")
    lists = {
        "set.csv": "\n".join(map(",".join, table)).encode(),
        "set.tsv": "\n".join(map("\t".join, table)).encode(),
        "set.txt": b"".join(b"%d.jpg %d\n" % (i % 4, i % 2) for i in range(60)),
        "set.parquet": parquet.getvalue(),
    }
    for name, content in lists.items():
        write(folder / name, files | {name: content})
    write(folder / "paths", files | {"set.txt": b"0.jpg\n1.jpg\n2.jpg\n3.jpg\n" * 15})
    write(folder / "zstd", files | {"set.parquet": compressed.getvalue()})


MANIFEST = Target("manifest", _make_manifests, _read_one, damaged="set*")


# ---- Packed sets ---------------------------------------------------------------------


def _make_packed(folder: Path) -> None:
    for format in ("jpeg", "raw"):
        source, out = folder / "source", folder / format / "set"
        write(source, _examples())
        out.parent.mkdir()
        args = [
            str(source),
            str(out),
            f"--format={format}",
            "--short_side=0",
            "--workers=1",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            pack.main(args)
        shutil.rmtree(source)


PACKED = Target("packed", _make_packed, _read_one, damaged="set/*")


_PLAN = {
    "options": {"short_side": 256, "format": "jpeg", "quality": 90, "channels": 3},
    "versions": {"numpy": "2.0.0", "pillow": "11.3.0"},
    "splits": {"train": {"num_source_examples": 4, "class_names": list(_CLASSES)}},
}


def _make_plan(folder: Path) -> None:
    file = f"{packed.UNFINISHED}/{packed.PLAN}"
    write(folder / "plan", {file: json.dumps(_PLAN).encode()})


def _read_plan(seed: Path) -> None:
    begin(str(seed), _PLAN, 0)


PLAN = Target("plan of a packed set", _make_plan, _read_plan, damaged="*.json")


# ---- Arrays --------------------------------------------------------------------------


def _idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def _make_idx(folder: Path) -> None:
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte"] = _idx(gradient(6, 7, 5))
        files[f"{part}-labels-idx1-ubyte"] = _idx(np.arange(6, dtype=np.uint8) % 3)
    write(folder / "plain" / "set", files)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    write(folder / "gz" / "set", packed)


def _read_idx(seed: Path) -> None:
    # The images are gray, which this view is not: their shapes are checked instead.
    for split in ("train", "validation"):
        source = open_source(str(seed / "set"), split)
        assert source.images.ndim == 4, source.images.shape
        assert source.images.dtype == np.uint8
        assert source.labels.shape == (len(source),)


IDX = Target("idx", _make_idx, _read_idx, damaged="set/*")


def _make_arrays(folder: Path) -> None:
    images = np.stack([gradient(6, 7, 3)] * 50).astype(np.float32)
    labels = np.arange(50) % 2
    write(folder / "file", {"set.npy": npy(images), "set_labels.npy": npy(labels)})
    examples = {
        name.replace("jpg", "npy"): npy(gradient(6, 7, 3)) for name in _examples()
    }
    write(folder / "folder", {f"set/{name}": array for name, array in examples.items()})
    for name, save in (("stored", np.savez), ("compressed", np.savez_compressed)):
        file, one = io.BytesIO(), io.BytesIO()
        save(file, images=images, labels=labels)
        save(one, gradient(6, 7, 3))
        write(folder / f"{name} npz", {"set.npz": file.getvalue()})
        files = {f"set/{n}/{i}.npz": one.getvalue() for n in _CLASSES for i in range(3)}
        write(folder / f"{name} npz folder", files)


def _read_arrays(seed: Path) -> None:
    (path,) = (p for p in seed.glob("set*") if "labels" not in p.name)
    with unittest.mock.patch.dict(os.environ, XDG_CACHE_HOME=str(seed)):
        read_splits(str(path), ("train", "validation"))


ARRAYS = Target("arrays", _make_arrays, _read_arrays, damaged="*.np*")


# ---- TFDS ----------------------------------------------------------------------------

_BUILDER = """
import io, sys
import tensorflow_datasets as tfds

class Squares(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            yield i, {"image": io.BytesIO(IMAGE), "label": i % 2}

IMAGE = bytes.fromhex(sys.argv[2])
Squares(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def _make_tfds(folder: Path) -> None:
    # A separate process: it registers its builder, and a run has none.
    command = [sys.executable, "-c", _BUILDER, str(folder / "set"), _image(0).hex()]
    subprocess.run(command, check=True, capture_output=True)


def _read_tfds(seed: Path) -> None:
    read_splits("tfds:squares", ("train", "test"), str(seed))


TFDS = Target("tfds", _make_tfds, _read_tfds, damaged="*.*")


# ---- Indexes -------------------------------------------------------------------------


_TIME = 10**18  # of all files and folders [ns]: an index notices a change by it


def _make_indexes(folder: Path) -> None:
    folders = {f"set/{name}": data for name, data in _examples().items()}
    write(folder / "folder", folders)
    write(folder / "archive", {"set.tar": _tar(_examples())})
    for seed in ("folder", "archive"):
        _list(folder / seed)


def _list(seed: Path) -> None:
    """List a data set with the index that lies beside it."""
    for path in (seed / "set", *seed.rglob("set*"), *seed.rglob("set/**/*")):
        if path.exists():
            os.utime(path, ns=(_TIME, _TIME))
    index = str(seed / "index.npz")
    with unittest.mock.patch.multiple(cache, _MIN_IMAGES=0, _file=lambda key: index):
        if (seed / "set").is_dir():
            paths = list_files(str(seed / "set"))
        else:
            paths = index_archive(str(seed / "set.tar")).paths
    assert all(isinstance(path, bytes) for path in paths)


INDEX = Target("index", _make_indexes, _list, damaged="index.npz", whole=True)

TARGETS = (ARCHIVE, MANIFEST, PACKED, PLAN, IDX, ARRAYS, TFDS, INDEX)
