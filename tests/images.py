"""Images and arrays for tests."""

import importlib.resources
import io
from pathlib import Path

import numpy as np
from PIL import Image

# Photographs of 640x427 pixels from a development dependency.
PHOTOS = [
    Path(str(importlib.resources.files("sklearn.datasets.images") / name))
    for name in ("china.jpg", "flower.jpg")
]


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def gradient(height: int, width: int, channels: int) -> np.ndarray:
    """Return uint8 [h, w, c] in which every pixel differs from its neighbours."""
    y, x = np.mgrid[:height, :width]
    planes = [(x * (c + 1) + y * 3) % 256 for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """Write an image of one gray level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_photographs(folder: Path, names: list[str]) -> None:
    """Write the two photographs alternately under these names."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PHOTOS[i % len(PHOTOS)].read_bytes())


def crops(name, count, size=(160, 120)):
    """Yield different parts of a photograph, "china" or "flower"."""
    whole = Image.open(next(photo for photo in PHOTOS if photo.stem == name))
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = int(rng.integers(whole.width - size[0]))
        y = int(rng.integers(whole.height - size[1]))
        yield whole.crop((x, y, x + size[0], y + size[1]))
