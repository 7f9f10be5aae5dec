"""RandAugment of the official fine-tuning, timm's "rand-m9-mstd0.5-inc1", in batches.

Operations are those of Pillow and their arguments those of timm 0.4.12
(timm/data/auto_augment.py). The fifteen are of three kinds: a table of grey levels, a
blend with a grey or a smooth copy, an affine warp. Each kind is computed for all images
of a batch, which costs less than fifteen branches of which a batch would compute all,
and each image takes the result that its operation asks for.

benchmarks/augment.py has the cost on a CPU. On TPUs, where gathers are slow, it has not
been measured and may exceed that of the model.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
BLENDS = ("Color", "Sharpness")
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
NONE = len(OPERATIONS)
MAX_MAGNITUDE = 10
# Chance that a drawn operation is carried out.
PROBABILITY = 0.5


def randaugment(
    key: jax.Array,
    images: jax.Array,
    *,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    fill: Sequence[int],
) -> jax.Array:
    """Applies `num_ops` random operations to each image, one after the other.

    images: uint8[b h w c], of 1 or 3 channels; magnitude: mean of a normal distribution
    in 0..10, magnitude_std: its standard deviation; fill: a grey level for each
    channel, where a warp looks beyond the image; returns: uint8[b h w c].
    """

    # A loop in the program: unrolled, XLA would merge the operations into one another
    # and compute a pixel again for each that looks at it.
    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        op, argument = draw(key, len(images), magnitude, magnitude_std)
        return apply(images, op, argument, fill), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]


def draw(
    key: jax.Array, n: int, magnitude: float, magnitude_std: float
) -> tuple[jax.Array, jax.Array]:
    """Random operations and their arguments, int[n] and float[n], for `apply`."""
    choice, gate, noise, sign = jax.random.split(key, 4)
    op = jax.random.randint(choice, (n,), 0, len(OPERATIONS))
    op = jnp.where(jax.random.bernoulli(gate, PROBABILITY, (n,)), op, NONE)
    level = magnitude + magnitude_std * jax.random.normal(noise, (n,))
    sign = jax.random.rademacher(sign, (n,), jnp.float32)
    return op, argument_of(op, jnp.clip(level, 0, MAX_MAGNITUDE), sign)


def argument_of(op: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """What timm makes of a magnitude: the argument of each operation, for `apply`.

    op: int[n], an index of OPERATIONS or NONE; level: float[n], 0..10; sign: float[n],
    -1 or 1; returns: float[n], 0 for operations without an argument.
    """
    share = level / MAX_MAGNITUDE
    # With multiples of 2^-14 blends are exact in float32, so the same everywhere.
    factor = jnp.round((1 + sign * 0.9 * share) * 2**14) / 2**14
    arguments = {
        "Rotate": sign * 30 * share,  # degrees
        "Posterize": 4 - jnp.floor(4 * share),  # bits that are kept
        "Solarize": 256 - jnp.floor(256 * share),  # first level that is inverted
        "SolarizeAdd": jnp.floor(110 * share),  # added to levels below 128
        "Color": factor,  # 0 is grey, 1 as it was
        "Contrast": factor,
        "Brightness": factor,
        "Sharpness": factor,
        "ShearX": sign * 0.3 * share,  # pixels a row
        "ShearY": sign * 0.3 * share,
        "TranslateX": sign * 0.45 * share,  # of the width
        "TranslateY": sign * 0.45 * share,  # of the height
    }
    return _choose(op, arguments, jnp.zeros_like(level))


def apply(
    images: jax.Array, op: jax.Array, argument: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """Applies to each image its operation, with the result that Pillow gives.

    images: uint8[b h w c], of 1 or 3 channels; op: int[b], an index of OPERATIONS or
    NONE; argument: float[b], see `argument_of`; returns: uint8[b h w c].

    Differences to Pillow are of one grey level: warps are computed in float32, and
    AutoContrast rounds whole numbers right that Pillow's floats make a little smaller.
    Images that Pillow now refuses to posterize to 0 bits turn black, as they once did.
    """
    pixels = images.astype(jnp.int32)
    looked_up = _look_up(_tables(pixels, op, argument), pixels)
    blended = _blend_with_copy(pixels, op, argument)
    warped = _warp(images, _matrices(op, argument, images.shape), fill)
    result = jnp.where(_is_one_of(op, BLENDS), blended, looked_up)
    return jnp.where(_is_one_of(op, WARPS), warped, result).astype(jnp.uint8)


def _choose(
    op: jax.Array, values: Mapping[str, jax.Array], default: jax.Array
) -> jax.Array:
    """[b ...]: for each image the value of its operation, or else the default."""
    of_all = [values.get(name, default) for name in (*OPERATIONS, "none")]
    of_all = [jnp.broadcast_to(value, default.shape) for value in of_all]
    return jax.vmap(lambda of_one, index: of_one[index])(jnp.stack(of_all, 1), op)


def _is_one_of(op: jax.Array, names: Sequence[str]) -> jax.Array:
    """bool[b 1 1 1]."""
    indices = jnp.array([OPERATIONS.index(name) for name in names])
    return (op[:, None] == indices).any(1)[:, None, None, None]


def _blend(degenerate: jax.Array, pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's Image.blend, in integers: `degenerate` for factor 0, `pixels` for 1."""
    blended = degenerate + factor * (pixels - degenerate)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _grey(pixels: jax.Array) -> jax.Array:
    """int[b h w c] -> int[b h w 1], as Pillow converts to mode "L"."""
    if pixels.shape[-1] == 1:
        return pixels
    weighted = pixels * jnp.array([19595, 38470, 7471])  # ITU-R 601, in 2^-16
    return (weighted.sum(-1, keepdims=True) + 2**15) >> 16


# ---- Tables of grey levels -----------------------------------------------------------


def _tables(pixels: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
    """int[b c 256]: what becomes of each grey level in each channel."""
    b, h, w, c = pixels.shape
    level = jnp.broadcast_to(jnp.arange(256), (b, c, 256))
    argument = argument[:, None, None]
    whole = argument.astype(jnp.int32)

    low, high = pixels.min((1, 2))[..., None], pixels.max((1, 2))[..., None]
    stretched = (level - low) * 255 // jnp.maximum(high - low, 1)

    counts = _histogram(pixels)
    step = (h * w - jnp.take_along_axis(counts, high, 2)) // 255
    below = jnp.cumsum(counts, 2) - counts
    equalized = (step // 2 + below) // jnp.maximum(step, 1)

    mean = (2 * _grey(pixels).sum((1, 2, 3)) + h * w) // (2 * h * w)
    tables = {
        "AutoContrast": jnp.where(high > low, stretched, level),
        "Equalize": jnp.where(step > 0, equalized, level),
        "Invert": 255 - level,
        "Posterize": level >> (8 - whole) << (8 - whole),
        "Solarize": jnp.where(level < whole, level, 255 - level),
        "SolarizeAdd": jnp.where(level < 128, level + whole, level),
        "Contrast": _blend(mean[:, None, None], level, argument),
        "Brightness": _blend(jnp.zeros_like(level), level, argument),
    }
    return jnp.clip(_choose(op, tables, level), 0, 255)


def _histogram(pixels: jax.Array) -> jax.Array:
    """int[b h w c] -> int[b c 256]: how many pixels have each grey level."""
    b, _, _, c = pixels.shape

    # Image by image, so that a batch that lies on several devices stays there.
    @jax.vmap
    def count(places: jax.Array) -> jax.Array:
        return jnp.zeros(c * 256, jnp.int32).at[places].add(1)

    return count(_places(pixels)).reshape(b, c, 256)


def _look_up(tables: jax.Array, pixels: jax.Array) -> jax.Array:
    """int[b c 256], int[b h w c] -> int[b h w c]."""
    return jax.vmap(lambda table, places: table.ravel()[places])(
        tables, _places(pixels)
    )


def _places(pixels: jax.Array) -> jax.Array:
    """Where each pixel's grey level is in an image's table[c 256], laid flat."""
    return pixels + 256 * jnp.arange(pixels.shape[-1])


# ---- Blends --------------------------------------------------------------------------


def _blend_with_copy(
    pixels: jax.Array, op: jax.Array, argument: jax.Array
) -> jax.Array:
    copy = jnp.where(_is_one_of(op, ("Color",)), _grey(pixels), _smooth(pixels))
    return _blend(copy, pixels, argument[:, None, None, None])


def _smooth(pixels: jax.Array) -> jax.Array:
    """Pillow's ImageFilter.SMOOTH: weights 1 around a 5, over 13; not on the border."""
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = around + 4 * pixels[:, 1:-1, 1:-1]
    return pixels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


# ---- Warps ---------------------------------------------------------------------------


def _matrices(
    op: jax.Array, argument: jax.Array, shape: tuple[int, ...]
) -> list[jax.Array]:
    """Six coefficients, float[b] each: x' = a x + b y + c, y' = d x + e y + f.

    x and y are counted from the middle of the image.
    """
    _, h, w, _ = shape
    angle = jnp.deg2rad(argument)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(argument), jnp.ones_like(argument)
    # timm shears about the upper left corner.
    right = {"ShearX": argument * h / 2, "TranslateX": argument * w}
    down = {"ShearY": argument * w / 2, "TranslateY": argument * h}
    return [
        _choose(op, {"Rotate": cos}, one),
        _choose(op, {"Rotate": -sin, "ShearX": argument}, zero),
        _choose(op, right, zero),
        _choose(op, {"Rotate": sin, "ShearY": argument}, zero),
        _choose(op, {"Rotate": cos}, one),
        _choose(op, down, zero),
    ]


def _warp(
    images: jax.Array, matrices: Sequence[jax.Array], fill: Sequence[int]
) -> jax.Array:
    """Pillow's Image.transform(AFFINE, BICUBIC): pixel (x, y) is that of (x', y').

    Rounds down; `fill` where (x', y') is not in the image.
    """
    _, h, w, c = images.shape
    xx, xy, x0, yx, yy, y0 = (m[:, None, None] for m in matrices)
    y, x = jnp.arange(h)[:, None] + 0.5 - h / 2, jnp.arange(w) + 0.5 - w / 2
    x, y = xx * x + xy * y + x0 + w / 2, yx * x + yy * y + y0 + h / 2
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    dx, dy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    column, row = left.astype(jnp.int32), top.astype(jnp.int32)

    def neighbour(i: int, j: int) -> jax.Array:
        places = jnp.clip(row + i, 0, h - 1) * w + jnp.clip(column + j, 0, w - 1)
        found = jax.vmap(lambda image, at: image.reshape(-1, c)[at])(images, places)
        return found.astype(jnp.float32)

    around = range(-1, 3)
    rows = [_cubic([neighbour(i, j) for j in around], dx) for i in around]
    warped = jnp.clip(_cubic(rows, dy), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], warped, jnp.array(fill, jnp.uint8))


def _cubic(points: Sequence[jax.Array], t: jax.Array) -> jax.Array:
    """Between the second and the third of four points; Keys' kernel with a = -1.

    Written so that equal points give exactly their value.
    """
    p, q, r, s = points
    return q + t * (r - p + t * (2 * (p - q) + r - s + t * (q - p + s - r)))
