"""Pictures show their inputs, to the pixel where possible."""

import numpy as np
import pytest
from PIL import Image

from simmim_jax.monitoring import pictures
from simmim_jax.monitoring.pictures import (
    MASK_GREY,
    augmentation_grid,
    curves,
    prediction_grid,
    reconstruction_grid,
)


def examples(n=3, h=32, w=32, c=3):
    """Images without white, so that gaps can be found by colour."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (n, h, w, c), np.uint8)
    masks = np.kron(rng.random((n, h // 8, w // 8)) < 0.6, np.ones((8, 8))) > 0
    reconstructions = rng.uniform(0, 200, (n, h, w, c)).astype(np.float32)
    return images, masks, reconstructions


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def runs(inked):
    """Slices of the True runs of an array [n] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inked, [0]])))
    return [slice(a, b) for a, b in edges.reshape(-1, 2)]


def cells(picture, size):
    """Images of a picture, [rows][columns], found between its white gaps."""
    inked = (picture < 255).any(-1)
    h, w = size
    rows = [r for r in runs(inked.any(1)) if r.stop - r.start == h]
    columns = runs(inked[rows[0]].any(0))
    assert all(column.stop - column.start == w for column in columns)
    return [[picture[row, column] for column in columns] for row in rows]


def test_columns_match_their_captions(tmp_path):
    images, masks, reconstructions = examples()
    path = tmp_path / "new" / "grid.png"
    assert reconstruction_grid(images, masks, reconstructions, path) == path
    rows = cells(read(path), (96, 96))
    assert [len(row) for row in rows] == [4, 4, 4]
    for image, mask, reconstruction, row in zip(
        images, masks, reconstructions, rows, strict=True
    ):
        original, masked, predicted, pasted = (cell[1::3, 1::3] for cell in row)
        np.testing.assert_array_equal(original, image)
        assert (masked[mask] == MASK_GREY).all()
        np.testing.assert_array_equal(masked[~mask], image[~mask])
        np.testing.assert_array_equal(predicted, np.rint(reconstruction))
        np.testing.assert_array_equal(pasted[mask], predicted[mask])
        np.testing.assert_array_equal(pasted[~mask], image[~mask])


def test_augmented_images_are_beside_their_originals(tmp_path):
    images, _, augmented = examples()
    path = tmp_path / "augmented.png"
    assert augmentation_grid(images, augmented, path) == path
    rows = cells(read(path), (96, 96))
    assert [len(row) for row in rows] == [2, 2, 2]
    for image, after, row in zip(images, augmented, rows, strict=True):
        np.testing.assert_array_equal(row[0][1::3, 1::3], image)
        np.testing.assert_array_equal(row[1][1::3, 1::3], np.rint(after))
    with pytest.raises(ValueError, match=r"augmented has shape \(3, 1024, 3\)"):
        augmentation_grid(images, augmented.reshape(3, -1, 3), path)


def test_small_images_are_enlarged_by_an_integer_factor(tmp_path):
    images, masks, reconstructions = examples(n=1)
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    original = cells(read(tmp_path / "grid.png"), (96, 96))[0][0]
    np.testing.assert_array_equal(original, images[0].repeat(3, 0).repeat(3, 1))


def test_captions_are_above_their_columns(tmp_path):
    images, masks, reconstructions = examples(n=1)
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    inked = (read(tmp_path / "grid.png") < 255).any(-1)
    header = next(r for r in runs(inked.any(1)) if r.stop - r.start == 96).start
    columns = runs(inked[header])
    assert len(columns) == 4
    for column in columns:
        assert inked[:header, column].any()
        inked[:header, column] = False
    assert not inked[:header].any()  # no caption reaches beyond its column


@pytest.mark.parametrize(
    ("n", "shape"), [(1, (1, 4)), (3, (3, 4)), (4, (2, 8)), (8, (4, 8))]
)
def test_four_or_more_examples_are_two_to_a_row_in_reading_order(tmp_path, n, shape):
    images, masks, reconstructions = examples(n=n)
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    rows = cells(read(tmp_path / "grid.png"), (96, 96))
    assert (len(rows), len(rows[0])) == shape
    originals = [cell[::3, ::3] for row in rows for cell in row[::4]]
    np.testing.assert_array_equal(originals, images)


def test_an_odd_number_of_examples_leaves_a_white_cell(tmp_path):
    reconstruction_grid(*examples(n=5), tmp_path / "grid.png")
    last_row = cells(read(tmp_path / "grid.png"), (96, 96))[2]
    assert len(last_row) == 8
    assert (np.stack(last_row[4:]) == 255).all()


@pytest.mark.parametrize("c", [1, 2, 4])
def test_channels_other_than_rgb(tmp_path, c):
    images, masks, reconstructions = examples(n=1, c=c)
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    original = cells(read(tmp_path / "grid.png"), (96, 96))[0][0][::3, ::3]
    expected = images[0, ..., :3] if c == 4 else images[0].mean(-1, keepdims=True) // 1
    np.testing.assert_array_equal(original, np.broadcast_to(expected, (32, 32, 3)))


@pytest.mark.parametrize(("h", "w", "scale"), [(64, 24, 4), (24, 64, 4), (96, 120, 1)])
def test_images_that_are_not_square(tmp_path, h, w, scale):
    images, masks, reconstructions = examples(n=2, h=h, w=w)
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    rows = cells(read(tmp_path / "grid.png"), (h * scale, w * scale))
    np.testing.assert_array_equal(rows[1][0][::scale, ::scale], images[1])


def test_predictions_out_of_range_are_clipped(tmp_path):
    images, masks, reconstructions = examples(n=1)
    reconstructions[0, :2, 0] = [[-40.0] * 3, [np.nan] * 3]
    reconstructions[0, 5, 5] = [400.0, np.inf, 0.0]
    reconstruction_grid(images, masks, reconstructions, tmp_path / "grid.png")
    predicted = cells(read(tmp_path / "grid.png"), (96, 96))[0][2][::3, ::3]
    assert (predicted[:2, 0] == 0).all()
    assert predicted[5, 5].tolist() == [255, 255, 0]


def test_wrong_shapes_raise(tmp_path):
    images, masks, reconstructions = examples()
    path = tmp_path / "grid.png"
    with pytest.raises(ValueError, match=r"images is float32\[3, 32, 32, 3\]"):
        reconstruction_grid(images.astype(np.float32), masks, reconstructions, path)
    with pytest.raises(ValueError, match=r"images is uint8\[32, 32, 3\]"):
        reconstruction_grid(images[0], masks, reconstructions, path)
    with pytest.raises(ValueError, match=r"masks has shape \(3, 4, 4\): expected"):
        reconstruction_grid(images, masks[:, ::8, ::8], reconstructions, path)
    with pytest.raises(ValueError, match=r"reconstructions has shape \(3, 1024, 3\)"):
        reconstruction_grid(images, masks, reconstructions.reshape(3, -1, 3), path)
    assert not path.exists()


def test_a_crash_keeps_the_old_picture_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    reconstruction_grid(*examples(), path)
    before = path.read_bytes()

    def crash(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        reconstruction_grid(*examples(n=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def shows(picture, colour):
    """Whether a picture has pixels of a "#rrggbb" colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((picture == rgb).all(-1).any())


def test_curves_draw_every_line_in_its_colour(tmp_path):
    steps = np.arange(100) * 1000
    panels = {
        "Loss": {"train": (steps, 1 / (steps + 1)), "held-out": (steps[::50], [1, 0])},
        "Accuracy": {"top-1": ([0, 1, 2], [0.1, None, float("nan")])},
    }
    path = curves(panels, tmp_path / "new" / "curves.png", xlabel="epoch")
    picture = read(path)
    assert picture.shape[1] == 1200
    assert all(shows(picture, colour) for colour in pictures.LINE_COLOURS[:2])
    assert not shows(picture, pictures.LINE_COLOURS[2])
    assert (picture[0] == 255).all()


@pytest.mark.parametrize("n", [1, 3])
def test_curves_take_any_number_of_panels(tmp_path, n):
    panels = {f"panel {i}": {"a": ([1, 2], [i, 1])} for i in range(n)}
    assert read(curves(panels, tmp_path / "curves.png")).shape[1] == 1200


def test_invalid_curves_raise(tmp_path):
    with pytest.raises(ValueError, match=r"'train' of panel 'Loss'.*\(3,\).*\(2,\)"):
        curves({"Loss": {"train": ([1, 2, 3], [1, 2])}}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="panels is empty"):
        curves({}, tmp_path / "curves.png")


NAMES = [["cat", "dog", "owl", "elk", "ant", "bee"], ["dog", "cat"], ["$x_1", "a" * 80]]
PROBABILITIES = [[0.5, 0.2, 0.1, 0.1, 0.06, 0.04], [0.9, 0.1], [0.6, 0.4]]


def test_predictions_mark_hits_and_misses(tmp_path):
    images = examples()[0]
    plain = read(prediction_grid(images, NAMES, PROBABILITIES, tmp_path / "plain.png"))
    assert shows(plain, pictures.BAR)
    assert not shows(plain, pictures.RIGHT_BAR)
    assert not shows(plain, pictures.WRONG_BAR)

    path = prediction_grid(
        images,
        NAMES,
        PROBABILITIES,
        tmp_path / "marked.png",
        true_names=["cat", "owl", "$x_1"],
        titles=["a.png", "b_$1$.png", "c.png"],
    )
    marked = read(path)
    assert shows(marked, pictures.RIGHT_BAR)
    assert shows(marked, pictures.WRONG_BAR)


def test_bar_lengths_are_proportional_to_probabilities(tmp_path):
    image = examples(n=1)[0]
    path = prediction_grid(image, [["", ""]], [[0.75, 0.25]], tmp_path / "bars.png")
    bar = (read(path) == [int(pictures.BAR[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    lengths = {r.stop - r.start for row in bar for r in runs(row)}
    assert max(lengths) == pytest.approx(3 * min(lengths), abs=4)


def test_invalid_predictions_raise(tmp_path):
    images, path = examples()[0], tmp_path / "predictions.png"
    with pytest.raises(ValueError, match="names has 2 entries"):
        prediction_grid(images, NAMES[:2], PROBABILITIES, path)
    with pytest.raises(ValueError, match="titles has 1 entries"):
        prediction_grid(images, NAMES, PROBABILITIES, path, titles=["a"])
    with pytest.raises(ValueError, match="1 names and 2 probabilities"):
        prediction_grid(images[:1], [["cat"]], [[0.5, 0.5]], path)
    with pytest.raises(ValueError, match="0 names"):
        prediction_grid(images[:1], [[]], [[]], path)


def test_lines_stand_below_each_other_and_are_enlarged(tmp_path):
    images = np.zeros((3, 16, 256, 1), np.uint8)
    masks = np.zeros((3, 16, 256), bool)
    masks[:, :, :64] = True
    predicted = np.full(images.shape, 255.0)
    path = pictures.reconstruction_grid(images, masks, predicted, tmp_path / "p.png")
    picture = np.asarray(Image.open(path).convert("L"))
    height, width = picture.shape
    assert height > 3 * 4 * 32
    assert 2 * 256 < width < 2 * 256 + 200  # captions stand on the left
    # Of each example: original, masked, reconstruction, pasted.
    left, right = picture[:, -2 * 256 + 40], picture[:, -40]
    pixels = 3 * 32
    assert np.count_nonzero(right == 0) == 3 * pixels
    assert np.count_nonzero(left == 0) == pixels
    assert np.count_nonzero(left == pictures.MASK_GREY) == pixels


def test_predictions_of_lines_stand_below_each_other(tmp_path):
    lines = np.zeros((3, 16, 256, 1), np.uint8)
    path = pictures.prediction_grid(
        lines, [["a"]] * 3, [[0.9]] * 3, tmp_path / "p.png", ["a", "b", "a"]
    )
    width, height = Image.open(path).size
    assert height > width / 2
