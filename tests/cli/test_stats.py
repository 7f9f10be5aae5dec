"""`simmim stats`: a table, a file that runs read, a picture."""

import numpy as np
import pytest
from PIL import Image

from simmim_jax.cli import commands
from simmim_jax.data.survey.stats import from_json


@pytest.fixture
def scenes(tmp_path):
    """Twelve uint16 scenes of two bands, a quarter of whose pixels is 0."""
    folder = tmp_path / "scenes" / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        scene = rng.integers(1000, 3000, (20, 16, 2), np.uint16)
        scene[:5] = 0
        np.save(folder / f"{i:02}.npy", scene)
    return folder.parent


def test_a_table_a_file_and_a_picture(scenes, tmp_path, capsys):
    out, picture = tmp_path / "stats.json", tmp_path / "values.png"
    commands.main(
        [
            *("stats", str(scenes), "--all", "--nodata=0"),
            *(f"--out={out}", f"--picture={picture}"),
        ]
    )
    said = capsys.readouterr().out
    assert "12 of 12 images, uint16" in said
    assert "25.0%" in said
    statistics = from_json(out)
    assert len(statistics.bands) == 2
    assert statistics.bands[0].min >= 1000
    assert statistics.bands[0].mean == pytest.approx(2000, abs=30)
    with Image.open(picture) as drawn:
        assert drawn.width == 1200


def test_errors_are_sentences(scenes, capsys):
    with pytest.raises(SystemExit, match="channels=3"):
        commands.main(["stats", str(scenes), "--channels=3"])
    with pytest.raises(SystemExit):
        commands.main(["stats", str(scenes), "--sample=0"])
    assert "expected 1 or more" in capsys.readouterr().err
