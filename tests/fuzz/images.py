"""Images of every codec, read as training and evaluation read them."""

import functools
import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_jax.data.codecs.base import Decoding
from simmim_jax.data.loader.bad_examples import REASONS, BadExample
from simmim_jax.data.loader.batches import PassBatches
from simmim_jax.data.sources.base import NO_LABEL, Source
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.views.base import View
from simmim_jax.data.views.image import CenterCropView, ImageView, RandomCropView
from simmim_jax.errors import UserError
from tests.fuzz.target import Target
from tests.images import encoded, gradient, npy

_SIZE = (24, 20)
_RANDOM = {"scale": (0.3, 1.0), "ratio": (3 / 4, 4 / 3)}
VIEWS: tuple[View, ...] = (
    RandomCropView(
        size=_SIZE, decoding=Decoding(3), interpolation="bilinear", fast=True, **_RANDOM
    ),
    RandomCropView(
        size=_SIZE, decoding=Decoding(1), interpolation="bicubic", fast=False, **_RANDOM
    ),
    CenterCropView(
        size=_SIZE, decoding=Decoding(3), interpolation="bicubic", crop_fraction=0.9
    ),
    ImageView(
        size=_SIZE, decoding=Decoding(3), interpolation="bilinear", dtype="float32"
    ),
)
_DEEP = ImageView(
    size=_SIZE, decoding=Decoding(3), interpolation="bilinear", dtype="uint16"
)
# Arrays and values of 16 bits are not converted: they fit some views only.
_VIEWS_OF_VALUES = {
    **dict.fromkeys(("png 16 bit", "tiff 16 bit"), (_DEEP,)),
    "npy": (VIEWS[0], VIEWS[2]),
    "npy gray": (VIEWS[1],),
    **dict.fromkeys(("npy float32", "npy float16", "npy float64"), (VIEWS[3],)),
}


class BadExamples(UserError):
    """Examples that are skipped and counted."""


def read_examples(source: Source, view: View, count: int = 4) -> None:
    """Read the first and the last examples into batches, and check the batches.

    raises: BadExamples if none can be used.
    """
    batches = _batches(source, view, min(count, len(source)))
    steps = {0, len(batches) - 1}
    found = [bad for step in steps for bad in fill(batches, step)]
    if len(found) == min(len(source), batches.batch_size * len(steps)):
        raise BadExamples(f"bad images, {', '.join(bad.reason for bad in found)}")


def fill(batches: PassBatches, step: int) -> list[BadExample]:
    """Fill one batch; return its bad examples."""
    batch = {
        name: np.zeros(shape, dtype) for name, (shape, dtype) in batches.fields.items()
    }
    try:
        found = batches.fill(step, range(batches.batch_size), batch)
    except UserError as error:  # of a wrong shape or dtype, which a file must not cause
        if "expected what its spec says" in str(error):
            raise AssertionError(error) from error
        raise
    examples = min(len(batches.source) - step * batches.batch_size, batches.batch_size)
    assert all(bad.reason in REASONS for bad in found), found
    assert batch["weight"].sum() == examples - len(found), batch["weight"]
    assert (batch["label"] >= NO_LABEL).all(), batch["label"]
    return found


def _batches(source: Source, view: View, batch_size: int) -> PassBatches:
    return PassBatches(
        source=source,
        view=view,
        batch_size=batch_size,
        process_index=0,
        process_count=1,
        num_threads=1,
    )


@functools.cache
def _one_file(folder: Path, name: str, view: View) -> PassBatches:
    # Kept, since its thread takes longer to start than a small image to decode.
    return _batches(
        FolderSource(str(folder), Paths([name.encode()]), None, ()), view, 1
    )


def _read(seed: Path) -> None:
    (file,) = seed.iterdir()
    views = _VIEWS_OF_VALUES.get(seed.name, VIEWS)
    view = views[zlib.crc32(file.read_bytes()) % len(views)]
    if found := fill(_one_file(seed, file.name, view), 0):
        raise BadExamples(f"bad image, {found[0].reason}")


# ---- Valid images --------------------------------------------------------------------


def _make(folder: Path) -> None:
    for name, data in _files().items():
        seed = folder / name
        seed.mkdir(parents=True)
        # The content decides, not the name; its ending tells how to damage it.
        (seed / f"image.{'png' if 'png' in name else 'bin'}").write_bytes(data)


def _files() -> dict[str, bytes]:
    """Return an image of every codec, in the modes and compressions that it has."""
    color = Image.fromarray(gradient(17, 23, 3))
    gray, palette = color.convert("L"), color.quantize(16)
    clear = Image.fromarray(gradient(16, 16, 4))
    deep = Image.fromarray(gradient(12, 15, 1)[:, :, 0].astype(np.uint16) * 200)
    large = Image.fromarray(gradient(120, 160, 3))
    frames = [Image.new("RGB", (14, 11), (value, 0, 0)) for value in (9, 99, 199)]
    exif = Image.Exif()
    exif[0x0112] = 6
    save_all = {"save_all": True, "append_images": frames[1:]}
    images = {
        "jpeg": (color, "JPEG", {}),
        "jpeg gray": (gray, "JPEG", {}),
        "jpeg exif": (color, "JPEG", {"exif": exif, "quality": 95}),
        "jpeg progressive": (color, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg restarts": (large, "JPEG", {"restart_marker_blocks": 2}),
        "jpeg cmyk": (color.convert("CMYK"), "JPEG", {}),
        "jpeg large": (large, "JPEG", {"quality": 30}),
        "png": (color, "PNG", {}),
        "png gray": (gray, "PNG", {}),
        "png clear": (clear, "PNG", {}),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png bits": (gray.convert("1"), "PNG", {}),
        "png 16 bit": (deep, "PNG", {}),
        "png text": (gray.convert("LA"), "PNG", {"dpi": (72, 72), "exif": exif}),
        "png frames": (frames[0], "PNG", save_all),
        "webp": (color, "WEBP", {"exif": exif}),
        "webp lossless": (clear, "WEBP", {"lossless": True}),
        "webp frames": (frames[0], "WEBP", save_all),
        "gif": (palette, "GIF", {}),
        "gif frames": (frames[0], "GIF", save_all),
        "bmp": (color, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "bmp bits": (gray.convert("1"), "BMP", {}),
        "tiff": (color, "TIFF", {"exif": exif}),
        "tiff lzw": (color, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (color, "TIFF", {"compression": "jpeg"}),
        "tiff packbits": (palette, "TIFF", {"compression": "packbits"}),
        "tiff group4": (gray.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff 16 bit": (deep, "TIFF", {}),
        "avif": (color, "AVIF", {"speed": 10}),
        "jpeg 2000": (color, "JPEG2000", {}),
        "ppm": (color, "PPM", {}),
        "pgm": (gray, "PPM", {}),
        "pbm": (gray.convert("1"), "PPM", {}),
    }
    files = {name: encoded(*image[:2], **image[2]) for name, image in images.items()}
    array = gradient(11, 13, 3)
    column_major = io.BytesIO()
    np.lib.format.write_array(
        column_major, np.asfortranarray(array.astype(np.float64)), version=(2, 0)
    )
    return files | {
        "npy": npy(array),
        "npy gray": npy(array[:, :, 0]),
        "npy float32": npy(array.astype(np.float32)),
        "npy float16": npy(array.astype(np.float16)),
        "npy float64": column_major.getvalue(),
    }


IMAGE = Target("image", _make, _read)
