"""RandAugment: operations against Pillow, arguments against timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks.pillow_operations import pillow
from simmim_jax.augment import randaugment
from simmim_jax.augment.randaugment import NONE, OPERATIONS, argument_of, draw
from simmim_jax.data.sources.registry import open_source

FILL = (124, 116, 104)
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# The last shape has so few pixels that Equalize's table exceeds 255.
SHAPES = [(64, 64, 3), (48, 80, 3), (23, 19, 1), (19, 23, 3)]
IMAGES = 8  # per operation
apply = jax.jit(randaugment.apply, static_argnames="fill")
# What `apply` is on CPUs and GPUs, and on TPUs.
IMPLEMENTATIONS = {
    name: jax.jit(getattr(randaugment, name), static_argnames="fill")
    for name in ("apply_to_all", "apply_one_by_one")
}


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.squeeze(image, 2) if image.shape[2] == 1 else image)


@functools.cache
def inputs(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, operations and their arguments, IMAGES of each operation."""
    height, width, channels = shape
    rng = np.random.default_rng(height * width)
    photos = open_source("bundled:climate", "train").images
    n = len(OPERATIONS) * IMAGES
    images = np.stack(
        [
            np.asarray(Image.fromarray(photo).resize((width, height)))[..., :channels]
            for photo in photos[rng.choice(len(photos), n, replace=False)]
        ]
    )
    op = np.repeat(np.arange(len(OPERATIONS)), IMAGES)
    level = rng.uniform(1, 9.9, n).astype(np.float32)
    sign = rng.choice([-1, 1], n).astype(np.float32)
    return images, op, np.asarray(argument_of(op, level, sign))


def by_operation(images: np.ndarray) -> np.ndarray:
    """Return uint8[operations IMAGES h w c]."""
    return images.reshape(len(OPERATIONS), IMAGES, *images.shape[1:])


@functools.cache
def ours(shape: tuple[int, int, int], implementation: str) -> np.ndarray:
    apply = IMPLEMENTATIONS[implementation]
    return by_operation(np.asarray(apply(*inputs(shape), FILL[: shape[2]])))


@functools.cache
def theirs(shape: tuple[int, int, int]) -> np.ndarray:
    results = [
        np.asarray(
            pillow(OPERATIONS[op], to_pillow(image), float(argument), FILL[: shape[2]])
        ).reshape(shape)
        for image, op, argument in zip(*inputs(shape), strict=True)
    ]
    return by_operation(np.stack(results))


# ---- Operations ----------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_match_pillow(name, shape, implementation):
    operation = OPERATIONS.index(name)
    images = by_operation(inputs(shape)[0])[operation]
    expected = theirs(shape)[operation]
    difference = np.abs(ours(shape, implementation)[operation].astype(int) - expected)
    if name in WARPS:
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3
    elif name == "AutoContrast":
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-2
    else:
        assert difference.max() == 0
    if (name, shape[2]) != ("Color", 1):  # grey stays grey
        assert (expected != images).any()


def test_auto_contrast_differs_only_by_pillows_rounding():
    low, high = np.triu_indices(256, 1)
    low, high = low[::7, None], high[::7, None]
    levels = np.clip(np.arange(256), low, high).astype(np.uint8)
    images = levels.reshape(-1, 16, 16, 1)
    op = np.full(len(images), OPERATIONS.index("AutoContrast"))
    ours = np.asarray(apply(images, op, np.zeros(len(images), np.float32), FILL[:1]))
    theirs = [np.asarray(ImageOps.autocontrast(to_pillow(image))) for image in images]
    short = ours.reshape(-1, 256).astype(int) - np.stack(theirs).reshape(-1, 256)
    whole = (levels - low) * 255 % (high - low) == 0
    assert set(np.unique(short)) == {0, 1}
    assert not short[~whole].any()


def test_auto_contrast_and_equalize_keep_constant_images():
    images = np.full((2, 8, 8, 3), [[[[10]]], [[[200]]]], np.uint8)
    for name in ("AutoContrast", "Equalize"):
        op = np.full(2, OPERATIONS.index(name))
        np.testing.assert_array_equal(apply(images, op, np.zeros(2), FILL), images)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_warps_keep_constant_images(implementation):
    levels = np.arange(256, dtype=np.uint8)
    images = np.tile(levels[:, None, None, None], (1, 40, 40, 1))
    op = np.resize([OPERATIONS.index(name) for name in WARPS], 256)
    argument = np.asarray(
        argument_of(op, np.full(256, 7.3), np.resize([1, -1, 1], 256))
    )
    warped = np.asarray(IMPLEMENTATIONS[implementation](images, op, argument, FILL[:1]))
    is_fill = warped == FILL[0]
    assert is_fill.any((1, 2, 3)).all()
    np.testing.assert_array_equal(np.where(is_fill, images, warped), images)


def test_posterize_to_zero_bits_gives_black():
    images = inputs(SHAPES[0])[0][:IMAGES]
    op = np.full(IMAGES, OPERATIONS.index("Posterize"))
    assert not np.asarray(apply(images, op, np.zeros(IMAGES), FILL)).any()


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 2), ("TranslateY", 1)])
def test_translation_moves_whole_pixels_and_fills_the_rest(name, axis):
    images = inputs(SHAPES[0])[0][:IMAGES]
    op = np.full(IMAGES, OPERATIONS.index(name))
    moved = np.asarray(apply(images, op, np.full(IMAGES, 0.25, np.float32), FILL))
    moved, images = (np.moveaxis(x, axis, 0) for x in (moved, images))
    np.testing.assert_array_equal(moved[:48], images[16:])
    assert (moved[48:] == np.array(FILL)).all()


def test_none_keeps_images():
    images = inputs(SHAPES[1])[0]
    op = np.full(len(images), NONE)
    np.testing.assert_array_equal(
        apply(images, op, np.ones(len(images), np.float32), FILL), images
    )


# ---- Arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # By timm 0.4.12's functions, at magnitudes 0, 5.2, 7.5, 9 and 10.
        ("AutoContrast", [0, 0, 0, 0, 0]),
        ("Equalize", [0, 0, 0, 0, 0]),
        ("Invert", [0, 0, 0, 0, 0]),
        ("Rotate", [0, 15.6, 22.5, 27, 30]),
        ("Posterize", [4, 2, 1, 1, 0]),
        ("Solarize", [256, 123, 64, 26, 0]),
        ("SolarizeAdd", [0, 57, 82, 99, 110]),
        ("Color", [1, 1.468, 1.675, 1.81, 1.9]),
        ("Contrast", [1, 1.468, 1.675, 1.81, 1.9]),
        ("Brightness", [1, 1.468, 1.675, 1.81, 1.9]),
        ("Sharpness", [1, 1.468, 1.675, 1.81, 1.9]),
        ("ShearX", [0, 0.156, 0.225, 0.27, 0.3]),
        ("ShearY", [0, 0.156, 0.225, 0.27, 0.3]),
        ("TranslateX", [0, 0.234, 0.3375, 0.405, 0.45]),
        ("TranslateY", [0, 0.234, 0.3375, 0.405, 0.45]),
    ],
)
def test_arguments_match_timm(name, expected):
    op = jnp.full(5, OPERATIONS.index(name))
    level = jnp.array([0, 5.2, 7.5, 9, 10])
    positive = argument_of(op, level, jnp.ones(5))
    np.testing.assert_allclose(positive, expected, atol=1e-4)
    negative = argument_of(op, level, -jnp.ones(5))
    if name in WARPS:
        np.testing.assert_allclose(negative, -positive)
    elif name in ("Color", "Contrast", "Brightness", "Sharpness"):
        np.testing.assert_allclose(negative, 2 - positive)
    else:
        np.testing.assert_array_equal(negative, positive)


# ---- Random draws --------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    op, argument = jax.jit(draw, static_argnums=1)(jax.random.key(0), 60000, 9.0, 0.5)
    return np.asarray(op), np.asarray(argument)


def test_operations_are_equally_likely_and_half_are_applied(drawn):
    shares = np.bincount(drawn[0], minlength=NONE + 1) / 60000
    assert shares[NONE] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(60000))
    assert shares[:NONE] == pytest.approx(1 / 30, abs=5 * np.sqrt(1 / 30 / 60000))


def test_magnitudes_are_normal_and_clipped_at_ten_and_signs_are_balanced(drawn):
    op, argument = drawn
    degrees = argument[op == OPERATIONS.index("Rotate")]
    level = np.abs(degrees) / 3
    assert level.max() == pytest.approx(10)
    below = level[level < 9]  # the half that is not clipped
    assert len(below) / len(level) == pytest.approx(0.5, abs=0.06)
    assert np.sqrt(((9 - below) ** 2).mean()) == pytest.approx(0.5, abs=0.04)
    assert (level > 9.999).mean() == pytest.approx(0.0228, abs=0.02)
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.06)


def test_operations_apply_in_sequence_and_depend_on_the_key():
    images = inputs(SHAPES[0])[0][::IMAGES]
    options = {"num_ops": 3, "magnitude": 9.0, "magnitude_std": 0.5, "fill": FILL}
    augment = jax.jit(functools.partial(randaugment.randaugment, **options))
    out = augment(jax.random.key(3), images)
    assert out.dtype == jnp.uint8
    expected = images
    for key in jax.random.split(jax.random.key(3), 3):
        expected = apply(expected, *draw(key, len(images), 9.0, 0.5), FILL)
    np.testing.assert_array_equal(out, expected)
    assert (augment(jax.random.key(4), images) != out).any()
