"""RandAugment of the official fine-tuning, timm's "rand-m9-mstd0.5-inc1", in batches.

Operations are Pillow's and their arguments timm 0.4.12's (timm/data/auto_augment.py).
The implementation is our own because it runs on the device, in batches, with Pillow's
exact semantics, which no maintained JAX library offers.

The fifteen operations are of three kinds: a lookup table of grey levels, a blend with a
grey or smoothed copy, an affine warp. Each kind is computed for all images of a batch,
and each image takes the result of its operation. This costs less than fifteen branches,
since a batch would compute them all.

On TPUs, where gathers are slow, images take turns, and each branches to its operation;
tables and warps are matrix products. benchmarks/augment.py measures the cost on a CPU,
benchmarks/augment_tpu.py estimates it for TPUs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from simmim_jax.augment import without_gathers

# Operations, and what they compute.
KINDS = {
    "AutoContrast": "table",
    "Equalize": "table",
    "Invert": "table",
    "Rotate": "warp",
    "Posterize": "table",
    "Solarize": "table",
    "SolarizeAdd": "table",
    "Color": "blend",
    "Contrast": "table",
    "Brightness": "table",
    "Sharpness": "blend",
    "ShearX": "warp",
    "ShearY": "warp",
    "TranslateX": "warp",
    "TranslateY": "warp",
}
OPERATIONS = tuple(KINDS)
NONE = len(OPERATIONS)
MAX_MAGNITUDE = 10
# Probability that a drawn operation is applied.
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
    """Apply `num_ops` random operations to each image in turn.

    images: uint8[b h w c] with 1 or 3 channels; magnitude, magnitude_std: mean and
    standard deviation of the normal magnitude, clipped to 0..10; fill: grey level per
    channel where a warp samples outside the image; returns: uint8[b h w c].
    """

    # A loop in the program: unrolled, XLA would fuse the operations and recompute a
    # pixel for every pixel that reads it.
    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        op, argument = draw(key, len(images), magnitude, magnitude_std)
        return apply(images, op, argument, fill), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]


def draw(
    key: jax.Array, n: int, magnitude: float, magnitude_std: float
) -> tuple[jax.Array, jax.Array]:
    """Draw operations and their arguments, int[n] and float[n], for `apply`."""
    choice, gate, noise, sign = jax.random.split(key, 4)
    op = jax.random.randint(choice, (n,), 0, len(OPERATIONS))
    op = jnp.where(jax.random.bernoulli(gate, PROBABILITY, (n,)), op, NONE)
    level = magnitude + magnitude_std * jax.random.normal(noise, (n,))
    sign = jax.random.rademacher(sign, (n,), jnp.float32)
    return op, argument_of(op, jnp.clip(level, 0, MAX_MAGNITUDE), sign)


def argument_of(op: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """Return the argument that timm derives from a magnitude, for `apply`.

    op: int[n], an index of OPERATIONS or NONE; level: float[n], 0..10; sign: float[n],
    -1 or 1; returns: float[n], 0 for operations without an argument.
    """
    share = level / MAX_MAGNITUDE
    # Multiples of 2^-14 make blends exact in float32, and so equal on all devices.
    factor = jnp.round((1 + sign * 0.9 * share) * 2**14) / 2**14
    arguments = {
        "Rotate": sign * 30 * share,  # degrees
        "Posterize": 4 - jnp.floor(4 * share),  # bits to keep
        "Solarize": 256 - jnp.floor(256 * share),  # first level to invert
        "SolarizeAdd": jnp.floor(110 * share),  # added to levels below 128
        "Color": factor,  # 0: grey, 1: unchanged
        "Contrast": factor,
        "Brightness": factor,
        "Sharpness": factor,
        "ShearX": sign * 0.3 * share,  # pixels per row
        "ShearY": sign * 0.3 * share,
        "TranslateX": sign * 0.45 * share,  # fraction of the width
        "TranslateY": sign * 0.45 * share,  # fraction of the height
    }
    return _choose(op, arguments, jnp.zeros_like(level))


def apply(
    images: jax.Array, op: jax.Array, argument: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """Apply to each image its operation, with Pillow's result.

    images: uint8[b h w c] with 1 or 3 channels; op: int[b], an index of OPERATIONS or
    NONE; argument: float[b], see `argument_of`; returns: uint8[b h w c].

    Differences from Pillow are at most one grey level: warps are computed in float32,
    and AutoContrast is exact where Pillow's floats fall just below a whole number.
    Posterizing to 0 bits gives black, as in old versions of Pillow; new ones raise.
    """
    return jax.lax.platform_dependent(
        images,
        op,
        argument,
        tpu=functools.partial(apply_one_by_one, fill=fill),
        default=functools.partial(apply_to_all, fill=fill),
    )


def apply_to_all(
    images: jax.Array, op: jax.Array, argument: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """`apply` by computing each kind of operation for all images."""
    pixels = images.astype(jnp.int32)
    tables = _tables(pixels, op, argument, _histogram(pixels))
    looked_up = _look_up(tables, pixels)
    blended = _blend_with_copy(pixels, op, argument)
    warped = _warp(images, op, argument, fill, _sample)
    result = jnp.where(_is_a("blend", op), blended, looked_up)
    return jnp.where(_is_a("warp", op), warped, result).astype(jnp.uint8)


def apply_one_by_one(
    images: jax.Array, op: jax.Array, argument: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """`apply` in a loop over images, without gathers. Devices keep their images."""

    def look_up(images: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.int32)
        tables = _tables(pixels, op, argument, without_gathers.histogram(pixels))
        return without_gathers.look_up(tables, pixels).astype(jnp.uint8)

    def blend(images: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.int32)
        return _blend_with_copy(pixels, op, argument).astype(jnp.uint8)

    def warp(images: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
        return _warp(images, op, argument, fill, without_gathers.sample)

    def keep(images: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
        return images

    branches = {"table": look_up, "blend": blend, "warp": warp, "none": keep}
    kinds = [list(branches).index(kind) for kind in (*KINDS.values(), "none")]

    def apply_to_one(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        one = [x[None] for x in inputs]
        return jax.lax.switch(
            jnp.array(kinds)[inputs[1]], list(branches.values()), *one
        )[0]

    def loop(images: jax.Array, op: jax.Array, argument: jax.Array) -> jax.Array:
        return jax.lax.map(apply_to_one, (images, op, argument))

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and len(images) % mesh.size == 0:
        part = jax.P(mesh.axis_names)
        loop = jax.shard_map(loop, in_specs=part, out_specs=part, check_vma=False)
    return loop(images, op, argument)


def _choose(
    op: jax.Array, values: Mapping[str, jax.Array], default: jax.Array
) -> jax.Array:
    """Return [b ...]: for each image the value of its operation, or the default."""
    of_all = [values.get(name, default) for name in (*OPERATIONS, "none")]
    of_all = [jnp.broadcast_to(value, default.shape) for value in of_all]
    return jax.vmap(lambda of_one, index: of_one[index])(jnp.stack(of_all, 1), op)


def _is_a(kind: str, op: jax.Array) -> jax.Array:
    """Return whether the operation of an image is of a kind: bool[b 1 1 1]."""
    indices = jnp.array([i for i, k in enumerate(KINDS.values()) if k == kind])
    return (op[:, None] == indices).any(1)[:, None, None, None]


def _blend(degenerate: jax.Array, pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Return Pillow's Image.blend, as int: `degenerate` at factor 0, `pixels` at 1."""
    blended = degenerate + factor * (pixels - degenerate)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _grey(pixels: jax.Array) -> jax.Array:
    """Convert int[b h w c] to int[b h w 1] as Pillow converts to mode "L"."""
    if pixels.shape[-1] == 1:
        return pixels
    weighted = pixels * jnp.array([19595, 38470, 7471])  # ITU-R 601, in 2^-16
    return (weighted.sum(-1, keepdims=True) + 2**15) >> 16


# ---- Tables of grey levels -----------------------------------------------------------


def _tables(
    pixels: jax.Array, op: jax.Array, argument: jax.Array, counts: jax.Array
) -> jax.Array:
    """Return lookup tables of grey levels, int[b c 256], given their histogram."""
    b, h, w, c = pixels.shape
    level = jnp.broadcast_to(jnp.arange(256), (b, c, 256))
    argument = argument[:, None, None]
    whole = argument.astype(jnp.int32)

    low, high = pixels.min((1, 2))[..., None], pixels.max((1, 2))[..., None]
    stretched = (level - low) * 255 // jnp.maximum(high - low, 1)

    step = (h * w - jnp.take_along_axis(counts, high, 2)) // 255
    below = jnp.cumsum(counts, axis=2) - counts
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
    """Count the pixels of each grey level: int[b h w c] -> int[b c 256]."""
    b, _, _, c = pixels.shape

    # Per image, so that a sharded batch stays on its devices.
    @jax.vmap
    def count(indices: jax.Array) -> jax.Array:
        return jnp.zeros(c * 256, jnp.int32).at[indices].add(1)

    return count(_flat_indices(pixels)).reshape(b, c, 256)


def _look_up(tables: jax.Array, pixels: jax.Array) -> jax.Array:
    """Look up pixels, int[b h w c], in tables, int[b c 256]."""
    return jax.vmap(lambda table, indices: table.ravel()[indices])(
        tables, _flat_indices(pixels)
    )


def _flat_indices(pixels: jax.Array) -> jax.Array:
    """Return the index of each pixel's grey level in a flattened table[c 256]."""
    return pixels + 256 * jnp.arange(pixels.shape[-1])


# ---- Blends --------------------------------------------------------------------------


def _blend_with_copy(
    pixels: jax.Array, op: jax.Array, argument: jax.Array
) -> jax.Array:
    is_color = (op == OPERATIONS.index("Color"))[:, None, None, None]
    copy = jnp.where(is_color, _grey(pixels), _smooth(pixels))
    return _blend(copy, pixels, argument[:, None, None, None])


def _smooth(pixels: jax.Array) -> jax.Array:
    """Apply Pillow's ImageFilter.SMOOTH: 3x3 ones around a 5, over 13; borders stay."""
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = around + 4 * pixels[:, 1:-1, 1:-1]
    return pixels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


# ---- Warps ---------------------------------------------------------------------------


def _matrices(
    op: jax.Array, argument: jax.Array, shape: tuple[int, ...]
) -> list[jax.Array]:
    """Return six coefficients, float[b]: x' = a x + b y + c, y' = d x + e y + f.

    x and y are relative to the image centre.
    """
    _, h, w, _ = shape
    angle = jnp.deg2rad(argument)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(argument), jnp.ones_like(argument)
    # timm shears about the top left corner.
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
    images: jax.Array,
    op: jax.Array,
    argument: jax.Array,
    fill: Sequence[int],
    sample: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Warp as Pillow's Image.transform(AFFINE, BICUBIC): sample (x, y) at (x', y').

    Rounds down; returns `fill` where (x', y') is outside the image.
    """
    _, h, w, _ = images.shape
    matrices = _matrices(op, argument, images.shape)
    xx, xy, x0, yx, yy, y0 = (m[:, None, None] for m in matrices)
    y, x = jnp.arange(h)[:, None] + 0.5 - h / 2, jnp.arange(w) + 0.5 - w / 2
    x, y = xx * x + xy * y + x0 + w / 2, yx * x + yy * y + y0 + h / 2
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    warped = jnp.clip(sample(images, x, y), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], warped, jnp.array(fill, jnp.uint8))


def _sample(images: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Interpolate images, uint8[b h w c], at positions, float[b h w].

    Pixel centres are at 0.5, 1.5 ...; returns: float[b h w c].
    """
    _, h, w, c = images.shape
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    dx, dy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    column, row = left.astype(jnp.int32), top.astype(jnp.int32)

    def neighbour(i: int, j: int) -> jax.Array:
        index = jnp.clip(row + i, 0, h - 1) * w + jnp.clip(column + j, 0, w - 1)
        found = jax.vmap(lambda image, at: image.reshape(-1, c)[at])(images, index)
        return found.astype(jnp.float32)

    around = range(-1, 3)
    rows = [_cubic([neighbour(i, j) for j in around], dx) for i in around]
    return _cubic(rows, dy)


def _cubic(points: Sequence[jax.Array], t: jax.Array) -> jax.Array:
    """Interpolate between the second and third of four points: Keys' kernel, a = -1.

    This form is exact for equal points.
    """
    p, q, r, s = points
    return q + t * (r - p + t * (2 * (p - q) + r - s + t * (q - p + s - r)))
