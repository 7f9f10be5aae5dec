"""scripts/cut_brain.py on a volume of a few voxels."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.sources.registry import open_source

nibabel = pytest.importorskip("nibabel")
SCRIPT = Path(__file__).parents[1] / "scripts" / "cut_brain.py"


def test_slices_are_upright_and_blocks_apart(tmp_path):
    rng = np.random.default_rng(0)
    brain = rng.integers(0, 256, (3, 4, 40), np.uint8)
    atlas = np.zeros_like(brain)
    atlas[0, -1, 5:30] = 2  # the subject's left, anterior
    left_handed = np.diag([-1.0, 1.0, 1.0, 1.0])
    for name, array in (("ch2", brain), ("aal", atlas)):
        stored = nibabel.Nifti1Image(array[::-1], left_handed)
        nibabel.save(stored, tmp_path / f"{name}.nii.gz")
    (tmp_path / "aal.nii.txt").write_text("1 Insula_L 3001\n2 Cuneus_L 5011\n\n")

    runpy.run_path(str(SCRIPT))["cut_brain"](tmp_path, tmp_path / "out")

    for kind, value, names in (
        ("regions", 2, ("other", "Insula_L", "Cuneus_L")),
        ("lobes", 4, ("other", "frontal", "insula", "limbic", "occipital")),
    ):
        train, held_out = (
            open_source(str(tmp_path / "out" / kind), split)
            for split in ("train", "validation")
        )
        assert train.mask_classes[: len(names)] == names
        slices = [
            [int(Path(example["path"]).stem) for example in source]
            for source in (train, held_out)
        ]
        assert slices == [[*range(10), *range(20, 40)], [*range(12, 18)]]
        assert [*train.has_mask] == [5 <= index < 30 for index in slices[0]]
        parts = (
            tmp_path / "out" / kind / "train" / part for part in ("images", "masks")
        )
        image, mask = (np.asarray(Image.open(part / "005.png")) for part in parts)
        np.testing.assert_array_equal(image, brain[:, ::-1, 5].T)
        assert mask.shape == (4, 3)
        assert mask[0, 0] == value
        assert np.count_nonzero(mask) == 1
