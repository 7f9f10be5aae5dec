"""Flip, erasing and mixing on the device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simmim_jax.augment.basic import (
    mix,
    random_erase,
    random_flip,
)


@pytest.fixture(scope="module")
def flipped():
    images = jnp.arange(4000 * 6, dtype=jnp.int32).reshape(4000, 2, 3, 1)
    return images, random_flip(jax.random.key(0), images)


def test_flip_mirrors_horizontally_or_leaves_an_image_unchanged(flipped):
    images, out = flipped
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    same = (out == images).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert out.dtype == images.dtype


def test_half_of_the_images_are_flipped_independently(flipped):
    images, out = flipped
    mirrored = np.asarray((out != images).any((1, 2, 3)))
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    changes = mirrored[1:] != mirrored[:-1]
    assert abs(changes.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_flips_depend_on_the_key_alone(flipped):
    images, out = flipped
    np.testing.assert_array_equal(random_flip(jax.random.key(0), images), out)
    assert (random_flip(jax.random.key(1), images) != out).any()


# ---- Random erasing ------------------------------------------------------------------


def boxes(erased):
    """Return top, left, height and width of the True box of each image, bool[n h w]."""
    rows, columns = erased.any(2), erased.any(1)
    return rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)


@pytest.fixture(scope="module")
def erased():
    """8000 black images, a quarter of them erased: float[n 30 42 2]."""
    images = jnp.zeros((8000, 30, 42, 2))
    return np.asarray(jax.jit(random_erase)(jax.random.key(0), images, 0.25))


def test_a_quarter_of_the_images_has_a_box_of_noise(erased):
    changed = (erased != 0).all(-1)
    np.testing.assert_array_equal(changed, (erased != 0).any(-1))
    some = changed.any((1, 2))
    assert some.mean() == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / 8000))
    _, _, height, width = boxes(changed[some])
    np.testing.assert_array_equal(changed[some].sum((1, 2)), height * width)


def test_noise_is_standard_normal_and_independent_per_pixel_and_channel(erased):
    noise = erased[(erased != 0).all(-1)]
    assert noise.mean() == pytest.approx(0, abs=5 / math.sqrt(noise.size))
    assert noise.var() == pytest.approx(1, abs=10 / math.sqrt(noise.size))
    assert len(np.unique(noise)) > 0.9 * noise.size


def timm_box(rng, h, w):
    """Draw a box by timm's rule, in plain Python."""
    for _ in range(10):
        area = h * w * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < h and width < w:
            top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
            return top, left, height, width
    raise AssertionError("none of ten boxes fits")


def test_boxes_are_distributed_as_in_timm(erased):
    changed = (erased != 0).any(-1)
    ours = np.stack(boxes(changed[changed.any((1, 2))]), 1).astype(float)
    rng = np.random.default_rng(0)
    theirs = np.array([timm_box(rng, 30, 42) for _ in range(8000)], float)
    for statistic in (lambda x: x, np.square):
        a, b = statistic(ours), statistic(theirs)
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) < 4 * error).all()
    top, left, height, width = ours.T
    assert (top.min(), left.min(), height.max()) == (0, 0, 29)
    assert ((top + height).max(), (left + width).max()) == (30, 42)


@pytest.mark.parametrize(("prob", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_none_or_all_images_are_erased(prob, share):
    images = jnp.full((64, 16, 16, 1), 7.0)
    out = jax.jit(random_erase)(jax.random.key(1), images, prob)
    assert (out != images).any((1, 2, 3)).mean() == share
    assert (out == images).any((1, 2, 3)).all()  # never the whole image


# ---- Mixing --------------------------------------------------------------------------

MIXUP = {"mixup_alpha": 0.8, "cutmix_alpha": 0.0, "prob": 1.0, "switch_prob": 0.5}
CUTMIX = MIXUP | {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
BOTH = MIXUP | {"cutmix_alpha": 1.0}


@functools.partial(jax.jit, static_argnames=("group", "mixup_alpha", "cutmix_alpha"))
def mix_many(keys, images, targets, **options):
    return jax.vmap(lambda key: mix(key, images, targets, **options))(keys)


@functools.cache
def mixed(batch_size=4, draws=4000, **options):
    """Mix one batch many times; image i has class i and colour i + 1."""
    colours = jnp.arange(1.0, batch_size + 1)[:, None, None, None]
    images = jnp.broadcast_to(colours, (batch_size, 6, 8, 1))
    keys = jax.random.split(jax.random.key(0), draws)
    options = {"group": batch_size} | options
    out = mix_many(keys, images, jnp.eye(batch_size), **options)
    return jax.device_get(out)


def own_share(images, image=0):
    """Return the weight of `image` in each of its pixels, float[draws h w]."""
    own, other = image + 1, images.shape[1] - image
    return (images[:, image, ..., 0] - other) / (own - other)


def test_mixup_averages_with_the_reversed_batch():
    images, targets = mixed(**MIXUP)
    share = own_share(images)
    assert np.ptp(share, axis=(1, 2)).max() < 1e-5  # equal at all pixels
    share = share.mean((1, 2))
    for i in (1, 2, 3):  # and in all images
        np.testing.assert_allclose(
            own_share(images, i),
            np.broadcast_to(share[:, None, None], (4000, 6, 8)),
            atol=1e-5,
        )
    expected = np.zeros((4000, 4, 4))
    for i in range(4):
        expected[:, i, i], expected[:, i, 3 - i] = share, 1 - share
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_mixup_share_follows_the_beta_distribution():
    share = own_share(mixed(**MIXUP)[0])[:, 0, 0]
    variance = 1 / (4 * (2 * 0.8 + 1))
    assert share.mean() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 4000))
    assert share.var() == pytest.approx(variance, rel=0.06)


def test_cutmix_pastes_a_box_of_the_reversed_batch_and_weights_targets_by_area():
    images, targets = mixed(**CUTMIX)
    share = own_share(images)
    assert set(np.unique(share)) == {0, 1}
    for i in (1, 2, 3):
        np.testing.assert_array_equal(own_share(images, i), share)
    _, _, height, width = boxes(share == 0)
    np.testing.assert_array_equal((share == 0).sum((1, 2)), height * width)
    np.testing.assert_allclose(targets[:, 0, 0], 1 - height * width / 48, atol=1e-6)
    np.testing.assert_allclose(targets.sum(2), 1, atol=1e-6)


def test_cutmix_boxes_are_distributed_as_in_timm():
    ours = np.stack(boxes(own_share(mixed(**CUTMIX)[0]) == 0), 1).astype(float)
    rng = np.random.default_rng(0)

    def span(ratio, n):
        half, centre = int(n * ratio) // 2, rng.integers(n)
        start, stop = max(centre - half, 0), min(centre + half, n)
        return start, stop - start

    def box():
        ratio = math.sqrt(rng.uniform())
        (top, height), (left, width) = span(ratio, 6), span(ratio, 8)
        return (top, left, height, width) if height and width else (0, 0, 0, 0)

    theirs = np.array([box() for _ in range(8000)], float)
    error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()


@pytest.mark.parametrize(
    ("prob", "switch_prob"), [(1.0, 0.5), (0.5, 0.5), (1.0, 0.2), (0.0, 0.5)]
)
def test_mixup_and_cutmix_occur_with_the_given_probabilities(prob, switch_prob):
    images, _ = mixed(**BOTH | {"prob": prob, "switch_prob": switch_prob})
    share = own_share(images)
    averaged = ((share > 0.001) & (share < 0.999)).any((1, 2))
    expected = prob * (1 - switch_prob)
    # 0.8 % of Mixup's shares are outside 0.001..0.999.
    assert averaged.mean() == pytest.approx(expected, abs=0.045)
    cut = (share == 0).any((1, 2)) & (share == 1).any((1, 2))
    # In images this small some boxes are empty.
    nonempty = ((own_share(mixed(**CUTMIX)[0]) == 0).any((1, 2))).mean()
    assert cut.mean() == pytest.approx(prob * switch_prob * nonempty, abs=0.045)
    if not prob:
        np.testing.assert_array_equal(share, 1)


def test_middle_image_of_an_odd_batch_is_unchanged():
    images, targets = mixed(batch_size=5, draws=20, **BOTH)
    np.testing.assert_allclose(images[:, 2], 3, rtol=1e-6)
    np.testing.assert_allclose(targets[:, 2, 2], 1, rtol=1e-6)


@pytest.mark.parametrize("kind", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_groups_mix_by_themselves_with_draws_of_their_own(kind):
    images, targets = mixed(batch_size=6, draws=400, group=2, **kind)
    for first in (0, 2, 4):
        alone = images[:, first], images[:, first + 1]
        np.testing.assert_allclose(alone[0] + alone[1], 2 * first + 3, atol=1e-5)
        others = np.delete(targets[:, first : first + 2], (first, first + 1), axis=2)
        assert not others.any()
    shares = np.stack([targets[:, i, i] for i in (0, 2, 4)])
    assert np.abs(np.corrcoef(shares) - np.eye(3)).max() < 0.25
