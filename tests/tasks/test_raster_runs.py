"""Training on GeoTIFFs from the command line: 13 bands of uint16."""

import commands
import numpy as np
import pytest
import tifffile

BANDS = 13


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Write tiles whose bands have means of 1,000, 2,000 and so on."""
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for i in range(40):
        noise = rng.integers(-200, 200, (36, 36, BANDS))
        image = (1000 * np.arange(1, BANDS + 1) + noise).astype(np.uint16)
        tifffile.imwrite(
            folder / f"{i:02}.tif",
            image,
            photometric="minisblack",
            planarconfig="contig",
            compression="zlib",
            tile=(16, 16),
        )
    return folder


def args(tiles, workdir, channels):
    fields = (
        f"data.dataset={tiles}",
        f"data.channels={channels}",
        "data.dtype=auto",
        "data.mean=()",
        "data.std=()",
        "data.batch_size=16",
        "duration=2 steps",
        "optim.warmup=1 steps",
    )
    return commands.tiny("pretrain", workdir, *fields)


def test_two_steps_on_13_bands(tiles, tmp_path):
    output = commands.run(*args(tiles, tmp_path, BANDS))
    assert "13 x uint16, 36x36" in output
    assert "values: uint16, 13 bands" in output
    data = commands.config(tmp_path)["data"]
    assert data["dtype"] == "uint16"
    np.testing.assert_allclose(data["mean"], 1000 * np.arange(1, 14), atol=5)
    losses = [line["loss"] for line in commands.metrics(tmp_path) if "loss" in line]
    assert 0 < losses[-1] < 2


def test_a_wrong_number_of_bands_ends_the_run_before_it_compiles(tiles, tmp_path):
    output = commands.run(*args(tiles, tmp_path, 12), status=1)
    assert "An image is uint16 [36, 36, 13]: expected [h, w, 12]" in output
    assert "Set --config.data.channels" in output
    assert "compil" not in output
    assert "Traceback" not in output
