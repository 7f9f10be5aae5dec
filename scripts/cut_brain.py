"""Cut the volume of configs/brain.py into slices, with masks of regions and of lobes.

    apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb packages
    python scripts/cut_brain.py packages/usr/share/mricron/templates data/brain

The package, mricron-data 1.2.20211006 of Debian 12 (BSD-3-Clause), has ch2.nii.gz, an
MR volume of one head with 1 mm voxels, aal.nii.gz, 116 regions of its brain in the same
grid, and aal.nii.txt, their names and codes. What is held out are blocks of axial
slices between those to train on: results compare ways to train, and say nothing about
other people. Needs pip install 'simmim_jax[medical]'.
"""

import argparse
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

BLOCK = 10  # slices
HELD_OUT = 1  # of every three blocks, the one in the middle
GAP = 2  # slices at either end of a held-out block, which are in neither split
# By the first digit of a region's code, from 2.
LOBES = (
    "frontal",
    "insula",
    "limbic",
    "occipital",
    "parietal",
    "subcortical",
    "temporal",
    "cerebellum",
)


def cut_brain(folder: Path, out: Path) -> None:
    """Write `out`/regions and `out`/lobes: the same slices, with masks of either kind.

    Slices without a region have no mask.
    """
    brain, atlas = (read(folder / f"{name}.nii.gz") for name in ("ch2", "aal"))
    table = [line.split() for line in (folder / "aal.nii.txt").open()]
    regions = [(name, int(code[0]) - 1) for _, name, code in filter(None, table)]
    lobe_of = np.array([0, *(lobe for _, lobe in regions)], np.uint8)
    kinds = {
        "regions": (atlas, [name for name, _ in regions]),
        "lobes": (lobe_of[atlas], LOBES),
    }
    for kind, (masks, names) in kinds.items():
        for index in range(len(brain)):
            if split := split_of(index):
                name = f"{index:03}.png"
                write_png(out / kind / split / "images" / name, brain[index])
                if masks[index].any():
                    write_png(out / kind / split / "masks" / name, masks[index])
        (out / kind / "classes.txt").write_text("\n".join(["other", *names]) + "\n")


def read(path: Path) -> np.ndarray:
    """Return axial slices from the lowest, anterior up, right on the right: [z h w]."""
    volume = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(volume.dataobj).T[:, ::-1]


def split_of(index: int) -> str:
    """Return the split of a slice, "" in a gap."""
    block, place = divmod(index, BLOCK)
    if block % 3 != HELD_OUT:
        return "train"
    return "validation" if GAP <= place < BLOCK - GAP else ""


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a grey image, uint8 [h w]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main() -> None:
    """Cut the volume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the three files")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    cut_brain(args.folder, args.out)


if __name__ == "__main__":
    main()
