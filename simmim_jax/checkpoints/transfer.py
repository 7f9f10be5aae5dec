"""Pre-trained parameters into a fine-tuning model, of other image and window sizes too.

Swin V2 has nothing to interpolate: its MLP makes a bias for any offset.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.interpolate import make_interp_spline

from simmim_jax.errors import UserError

Size = tuple[int, int]  # height and width

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"encoder/rel_pos_bias/{_TABLE}"
_BLOCK = re.compile(r"encoder/(?:layers_(\d+)/)?blocks_\d+")
_POSITIONS = re.compile(rf"encoder/(.+/{_TABLE}|pos_embed|absolute_pos_embed)")
# What may be in one of the encoders alone.
_OPTIONAL = re.compile(rf"{_POSITIONS.pattern}|encoder/(mask_token|norm/.+)")


def transfer(
    pretrained: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    source_grid: Size | None = None,
    target_grid: Size | None = None,
    first_blocks: bool = False,
) -> tuple[dict[str, Any], str]:
    """Replaces the encoder's parameters in `params` by pre-trained ones.

    pretrained: parameters of a pre-training run, or of another classifier; params:
    those of the new model. A table that the pre-trained blocks share is copied to each
    block (official `remap_pretrained_keys_vit`), or added to the block's own. Where the
    grids of patches or the windows differ, positions are interpolated: see
    `interpolate_offsets` and `interpolate_positions`. A grid that is not given is
    square. first_blocks: the checkpoint may have more blocks than the model, which
    takes the first ones.

    Returns the new parameters and a report of what matched, what was interpolated, what
    is new and what was left out. ValueError that names both shapes where the encoders
    are not the same otherwise.
    """
    old, new = (flatten_dict(tree, sep="/") for tree in (pretrained, params))
    _share_out_table(old, new)
    matching = [name for name in new if name in old and name.startswith("encoder/")]
    if not matching:
        raise UserError(
            "nothing in the checkpoint matches the model's encoder. It holds "
            f"{', '.join(sorted(old)[:3])}, …; expected "
            f"{', '.join(sorted(new)[:3])}, …. "
            "Is config.model the encoder that config.init_from was trained with?"
        )
    if differences := _differences(old, new, first_blocks):
        raise UserError(
            "the checkpoint's encoder is not that of config.model; make them the "
            "same:\n  " + "\n  ".join(differences)
        )
    merged = new | {name: old[name] for name in matching}
    resized = Counter[str]()
    for name in filter(_POSITIONS.fullmatch, matching):
        before = _size(name, old[name], source_grid)
        after = _size(name, new[name], target_grid)
        if before != after:
            merged[name] = _resize(name, old[name], before, after)
            kind = name.split("/")[-1]
            resized[f"{kind} from {_text(before)} to {_text(after)}"] += 1
    groups = dict.fromkeys(name.split("/")[1] for name in matching)
    fresh = [name for name in new if name not in matching]
    # A block that is left out is named as a whole.
    blocks = _blocks(new)
    unused = dict.fromkeys(
        name if _block(name) in blocks else _block(name) or name
        for name in old
        if name not in matching
    )
    report = [
        f"restored {len(matching)} of the encoder's parameters: {', '.join(groups)}",
        *(f"interpolated: {count} {what}" for what, count in resized.items()),
        f"new: {', '.join(fresh) or 'nothing'}",
        f"left out: {', '.join(unused) or 'nothing'}",
    ]
    return unflatten_dict(merged, sep="/"), "\n".join(report)


def interpolate_offsets(table: np.ndarray, size: Size) -> np.ndarray:
    """Biases of relative positions for another window.

    table: float[h w heads], one row or column an offset, 0 in the middle; size: h and w
    to be, odd as well. Along each axis a cubic spline goes through
    `geometric_coordinates` and is evaluated at whole offsets; beyond the outermost
    coordinate it stays as it is there (official `load_pretrained`, from BEiT). An axis
    of the same size is left alone.
    """
    for axis, (before, after) in enumerate(zip(table.shape, size, strict=False)):
        if before == after:
            continue
        coordinates = geometric_coordinates(before, after)
        offsets = np.arange(after) - after // 2
        spline = make_interp_spline(coordinates, table, k=min(3, before - 1), axis=axis)
        table = spline(offsets.clip(coordinates[0], coordinates[-1]))
    return table


def geometric_coordinates(before: int, after: int) -> np.ndarray:
    """Where `before` trained offsets lie among `after` new ones: float64[before].

    Steps outwards from 0 grow as 1, q, q², …: near offsets keep their meaning, and the
    outermost reach the new ones.
    """
    steps = spacing(before // 2, after // 2) ** np.arange(before // 2)
    half = np.cumsum(steps)
    return np.concatenate([-half[::-1], [0], half])


def spacing(steps: int, distance: int) -> float:
    """q in 1.01..1.5 with 1 + q + … + q^(steps-1) = distance, by bisection to 1e-6."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > distance:
            high = q
        else:
            low = q
    return q


def interpolate_positions(positions: np.ndarray, size: Size) -> np.ndarray:
    """Absolute positions for another grid, bicubic: float[h w d] -> float[*size d].

    The cubic is Keys', a = -0.5, and wider where a grid shrinks, as in Pillow and in
    PyTorch with antialias=True. (The official code does not interpolate them.)
    """
    shape = (*size, positions.shape[-1])
    return np.asarray(jax.image.resize(positions, shape, "cubic"))


def _share_out_table(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Gives each block the table that all share in `old`, if each has one in `new`.

    Where a block has its own as well, their sum is its bias.
    """
    blocks = _blocks(old)
    names = [n for n in new if n.endswith(f"/attn/{_TABLE}") and _block(n) in blocks]
    if names and _SHARED_TABLE in old and _SHARED_TABLE not in new:
        shared = old.pop(_SHARED_TABLE)
        old.update({n: old[n] + shared if n in old else shared for n in names})


def _differences(
    old: dict[str, Any], new: dict[str, Any], first_blocks: bool
) -> list[str]:
    """In what the encoders differ beyond what is interpolated, new or left out."""
    there, here = _depths(old), _depths(new)
    if there != here and not (first_blocks and _begins(here, there)):
        hint = "; config.init_first_blocks=True takes the first ones"
        return [
            f"blocks: {_text(there, ', ')} in the checkpoint, {_text(here, ', ')} here"
            + (hint if _begins(here, there) else "")
        ]
    differences = []
    taken = {None, *_blocks(new)}
    for name in old | new:
        if not name.startswith("encoder/"):
            continue
        before, after = (np.shape(p[name]) if name in p else None for p in (old, new))
        if before is None or after is None:
            same = _OPTIONAL.fullmatch(name) or _block(name) not in taken
        elif _POSITIONS.fullmatch(name):
            same = before[-1] == after[-1]  # heads or features
        else:
            same = before == after
        if not same:
            differences.append(
                f"{name}: {before or 'nothing'} in the checkpoint, "
                f"{after or 'nothing'} here"
            )
    return differences


def _block(name: str) -> str | None:
    """The block that a parameter belongs to, such as encoder/layers_0/blocks_1."""
    match = _BLOCK.match(name)
    return match and match[0]


def _blocks(names: Iterable[str]) -> set[str]:
    return {block for name in names if (block := _block(name))}


def _depths(names: Iterable[str]) -> tuple[int, ...]:
    """Number of blocks, in each stage where there are stages."""
    stages = Counter(re.sub(r"\bblocks_\d+", "", block) for block in _blocks(names))
    return tuple(stages[stage] for stage in sorted(stages))


def _begins(here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether an encoder with these depths has the first blocks of one with those."""
    last = len(here) - 1
    return (
        0 <= last < len(there)
        and here[:last] == there[:last]
        and here[last] <= there[last]
    )


def _on_grid(name: str, value: Any) -> slice:
    """The rows of a table, or of absolute positions, that are not the class token's.

    A grid has an odd number of offsets, to which a class token adds three.
    """
    rows = np.shape(value)[-2]
    if name.endswith(_TABLE):
        return slice(0, rows if rows % 2 else rows - 3)
    return slice(1 if name.endswith("/pos_embed") else 0, rows)


def _size(name: str, value: Any, grid: Size | None) -> Size:
    """Height and width of a table, in offsets, or of absolute positions, in patches.

    grid: that of the patches. Tables without a class token are those of windows, which
    are square.
    """
    rows, cells = np.shape(value)[-2], _on_grid(name, value)
    count = cells.stop - cells.start
    is_table = name.endswith(_TABLE)
    if grid is None or (is_table and count == rows):
        size = (math.isqrt(count),) * 2
    else:
        size = (2 * grid[0] - 1, 2 * grid[1] - 1) if is_table else grid
    if math.prod(size) != count:
        raise UserError(
            f"{name} has {rows} rows, which fit no "
            f"{_text(grid) if grid else 'square'} grid of patches: expected the grid "
            "that it was made for."
        )
    return size


def _resize(name: str, value: Any, before: Size, after: Size) -> np.ndarray:
    """Interpolates what lies on the grid, and leaves the class token's rows alone."""
    value, cells = np.asarray(value), _on_grid(name, value)
    rows = value.reshape(-1, value.shape[-1])
    interpolate = (
        interpolate_offsets if name.endswith(_TABLE) else interpolate_positions
    )
    grid = interpolate(rows[cells].reshape(*before, -1), after)
    grid = grid.reshape(-1, rows.shape[-1]).astype(value.dtype)
    rows = np.concatenate([rows[: cells.start], grid, rows[cells.stop :]])
    return rows.reshape(*value.shape[:-2], *rows.shape)


def _text(numbers: tuple[int, ...], separator: str = "x") -> str:
    return separator.join(map(str, numbers))
