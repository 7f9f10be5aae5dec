"""Image files for tests: photographs and squares of one gray."""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_SKLEARN = Path(find_spec("sklearn").origin).parent
PHOTOGRAPHS = {
    name: (_SKLEARN / "datasets" / "images" / name).read_bytes()
    for name in ("china.jpg", "flower.jpg")
}


def write_image(path, value=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_photographs(folder, names):
    """Write china.jpg under even positions of `names`, flower.jpg under odd ones."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PHOTOGRAPHS[("china.jpg", "flower.jpg")[i % 2]])
