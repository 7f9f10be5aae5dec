"""Basic augmentation of a batch: flip, erasing, mixing."""

import jax
import jax.numpy as jnp

# Area of an erased box [fraction of the image].
ERASE_AREA = (0.02, 1 / 3)
# Minimum height / width of an erased box; the maximum is its inverse.
ERASE_ASPECT = 0.3
# Maximum number of attempts to draw a box that fits.
ERASE_TRIES = 10


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flip each image of [b h w c] horizontally with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def random_erase(key: jax.Array, images: jax.Array, prob: float) -> jax.Array:
    """Fill a random box of some images with noise (Zhong et al., 2017, "pixel" mode).

    images: float[b h w c], normalised to match the N(0, 1) noise; prob: fraction of
    images. Boxes are drawn as in timm 0.4.12 (timm/data/random_erasing.py).
    """
    b, h, w, _ = images.shape
    gate, box, noise = jax.random.split(key, 3)
    area, aspect, top, left = jax.random.uniform(box, (4, b, ERASE_TRIES))
    area = h * w * (ERASE_AREA[0] + area * (ERASE_AREA[1] - ERASE_AREA[0]))
    aspect = ERASE_ASPECT ** (2 * aspect - 1)  # uniform on a log scale
    height = jnp.round(jnp.sqrt(area * aspect))
    width = jnp.round(jnp.sqrt(area / aspect))
    top = jnp.floor(top * (h - height + 1))
    left = jnp.floor(left * (w - width + 1))
    fits = (height < h) & (width < w)
    first = fits.argmax(1, keepdims=True)
    top, left, height, width = (
        jnp.take_along_axis(x, first, 1) for x in (top, left, height, width)
    )
    rows = _is_within(top, top + height, h)[:, :, None, None]
    columns = _is_within(left, left + width, w)[:, None, :, None]
    erased = jax.random.bernoulli(gate, prob, (b,)) & fits.any(1)
    erased = erased[:, None, None, None] & rows & columns
    return jnp.where(erased, jax.random.normal(noise, images.shape), images)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    group: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float,
    switch_prob: float,
) -> tuple[jax.Array, jax.Array]:
    """Apply Mixup (Zhang et al., 2017) or CutMix (Yun et al., 2019) to a batch.

    Each group of consecutive images is mixed with itself in reverse. It has one choice,
    one share and one box, as in timm 0.4.12's "batch" mode (timm/data/mixup.py), which
    the official code uses on each GPU.

    images: float[b h w c]; targets: float[b k]; group: images, divides b; prob:
    probability of mixing a group; switch_prob: probability of CutMix if both are
    enabled; mixup_alpha, cutmix_alpha: parameter of the share's distribution
    Beta(alpha, alpha), 0 to disable that kind.
    """
    groups = len(images) // group
    keys = key[None] if groups == 1 else jax.random.split(key, groups)

    def own_weights(key: jax.Array) -> jax.Array:
        """Return the weight of the image itself in each pixel, float[h w 1]."""
        gate, switch, share, box = jax.random.split(key, 4)
        if mixup_alpha and cutmix_alpha:
            cut = jax.random.bernoulli(switch, switch_prob)
        else:
            cut = jnp.array(bool(cutmix_alpha))
        alpha = jnp.where(cut, cutmix_alpha, mixup_alpha)
        share = jax.random.beta(share, alpha, alpha)
        share = jnp.where(jax.random.bernoulli(gate, prob), share, 1.0)
        own = jnp.where(cut, ~_cutmix_box(box, images.shape, share), share)
        return own[..., None]

    own = jax.vmap(own_weights)(keys)[:, None]  # [groups 1 h w 1]

    def mixed(values: jax.Array, own: jax.Array) -> jax.Array:
        grouped = values.reshape(groups, group, *values.shape[1:])
        return (grouped * own + grouped[:, ::-1] * (1 - own)).reshape(values.shape)

    # A branch: otherwise XLA would compute whatever produces `images` twice.
    images = jax.lax.cond((own < 1).any(), lambda x: mixed(x, own), lambda x: x, images)
    # Only the part of the box inside the image counts.
    return images, mixed(targets, own.mean((2, 3)))


def _cutmix_box(key: jax.Array, shape: tuple[int, ...], share: jax.Array) -> jax.Array:
    """Return bool[h w]: a box of area 1 - share around a random pixel, clipped."""

    def side(key: jax.Array, n: int) -> jax.Array:
        half = (n * jnp.sqrt(1 - share)).astype(int) // 2
        centre = jnp.floor(jax.random.uniform(key) * n)
        return _is_within(centre - half, centre + half, n)

    _, h, w, _ = shape
    down, across = jax.random.split(key)
    return side(down, h)[:, None] & side(across, w)


def _is_within(start: jax.Array, stop: jax.Array, n: int) -> jax.Array:
    """Return bool[... n]: which of 0..n - 1 are in start..stop - 1."""
    return (jnp.arange(n) >= start) & (jnp.arange(n) < stop)
