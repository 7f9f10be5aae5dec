"""Transfer of pre-trained parameters to other image sizes, windows and channels.

Swin V2 needs no interpolation: its MLP computes a bias for any offset.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from simmim_jax.errors import UserError

Size = tuple[int, int]  # height and width

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"encoder/rel_pos_bias/{_TABLE}"
_BLOCK = re.compile(r"encoder/(?:layers_(\d+)/)?blocks_\d+")
_POSITIONS = re.compile(rf"encoder/(.+/{_TABLE}|pos_embed|absolute_pos_embed)")
_PATCHES = "encoder/patch_embed/kernel"  # [p q c d]
# Parameters that only one of the encoders may have.
_OPTIONAL = re.compile(rf"{_POSITIONS.pattern}|encoder/(mask_token|norm/.+)")


def transfer(
    pretrained: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    source_grid: Size | None = None,
    target_grid: Size | None = None,
    first_blocks: bool = False,
    adapt_channels: bool = False,
    bands: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> tuple[dict[str, Any], str]:
    """Replace the encoder's parameters in `params` by pre-trained ones.

    A relative position table shared by the pre-trained blocks is copied to each block
    (official `remap_pretrained_keys_vit`), or added to the block's own table. If the
    patch grids or windows differ, positions are interpolated: see `interpolate_offsets`
    and `interpolate_positions`. A decoder is replaced, too, if both models have one of
    the same shapes.

    Args:
      pretrained: parameters of a pre-training model or a classifier.
      params: parameters of the new model.
      source_grid: patch grid of the checkpoint; None for a square one.
      target_grid: patch grid of the new model; None for a square one.
      first_blocks: allow a checkpoint with more blocks, and take the first ones.
      adapt_channels: allow images of other channels: see `adapted_channels`, and
        `named_channels` where both have names of bands and share some.
      bands: names of the checkpoint's channels, and of the new model's; (): none.

    Returns: the new parameters, and a report of what was restored, interpolated,
    adapted, new and left out. Raises UserError with both shapes if the encoders differ
    otherwise.
    """
    old, new = (flatten_dict(tree, sep="/") for tree in (pretrained, params))
    _distribute_shared_table(old, new)
    matching = [name for name in new if name in old and name.startswith("encoder/")]
    if not matching:
        raise UserError(
            "nothing in the checkpoint matches the model's encoder. It holds "
            f"{', '.join(sorted(old)[:3])}, …; expected "
            f"{', '.join(sorted(new)[:3])}, …. "
            "Set --config.model.name to the encoder that config.init_from was trained "
            "with, or --config to a config of it: `simmim configs` lists them."
        )
    adapted = ""
    if adapt_channels and _PATCHES in matching:
        before, channels = (np.shape(p[_PATCHES])[2] for p in (old, new))
        if before != channels:
            if {*bands[0]} & {*bands[1]}:
                old[_PATCHES] = named_channels(old[_PATCHES], *bands)
                how = _by_name(*bands)
            else:
                old[_PATCHES] = adapted_channels(old[_PATCHES], channels)
                how = "averaged" if channels < before else "repeated"
                how += f" from {before} to {channels} channels"
            adapted = f"adapted: patch_embed, {how}"
    if differences := _differences(old, new, first_blocks):
        raise UserError(
            "the checkpoint's encoder is not that of config.model. Make them the same "
            "with --config.model.FIELD=VALUE:\n  " + "\n  ".join(differences)
        )
    decoder, said = _decoder(old, new)
    matching += decoder
    merged = new | {name: old[name] for name in matching}
    resized = Counter[str]()
    for name in filter(_POSITIONS.fullmatch, matching):
        before = _size(name, old[name], source_grid)
        after = _size(name, new[name], target_grid)
        if before != after:
            merged[name] = _resize(name, old[name], before, after)
            kind = name.split("/")[-1]
            resized[f"{kind} from {_text(before)} to {_text(after)}"] += 1
    notes = [f"interpolated: {count} {what}" for what, count in resized.items()]
    notes += filter(None, [adapted, said])
    return unflatten_dict(merged, sep="/"), _report(old, new, matching, notes)


def adapted_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a patch embedding [p q c d] for images of other channels.

    More channels repeat the old ones in order, and each old one is shared among its
    copies; fewer get their mean, times old / new. An image whose channels are all equal
    has the same tokens before and after.
    """
    kernel = np.asarray(kernel)
    before = kernel.shape[2]
    if channels < before:
        mean = kernel.mean(axis=2, keepdims=True) * (before / channels)
        return np.repeat(mean, channels, axis=2).astype(kernel.dtype)
    source = np.arange(channels) % before
    copies = np.bincount(source)[source].astype(kernel.dtype)
    return kernel[:, :, source] / copies[:, None]


def named_channels(
    kernel: np.ndarray, learned: Sequence[str], bands: Sequence[str]
) -> np.ndarray:
    """Return a patch embedding [p q c d] of `learned` bands for images of `bands`.

    Bands of both keep their weights, and new ones start at 0: an image has the tokens
    that it had with 0, the mean, in what it lacks.
    """
    kernel = np.asarray(kernel)
    height, width, _, dim = kernel.shape
    taken = np.zeros((height, width, len(bands), dim), kernel.dtype)
    for place, band in enumerate(bands):
        if band in learned:
            taken[:, :, place] = kernel[:, :, list(learned).index(band)]
    return taken


def _by_name(learned: Sequence[str], bands: Sequence[str]) -> str:
    said = {
        "restored by name": [band for band in bands if band in learned],
        "from 0": [band for band in bands if band not in learned],
        "left out": [band for band in learned if band not in bands],
    }
    return "; ".join(
        f"{what}: {', '.join(names)}" for what, names in said.items() if names
    )


def interpolate_offsets(table: np.ndarray, size: Size) -> np.ndarray:
    """Resample a table of relative position biases for another window.

    Along each axis, a cubic spline through `geometric_coordinates` is evaluated at
    integer offsets, and clamped outside of them (official `load_pretrained`, from
    BEiT). An axis of equal size is unchanged.

    table: [h, w, heads] float, one row or column an offset, 0 in the middle.
    size: new h and w, both odd. Returns: [*size, heads].
    """
    from scipy.interpolate import make_interp_spline  # 1 s to import

    for axis, (before, after) in enumerate(zip(table.shape, size, strict=False)):
        if before == after:
            continue
        coordinates = geometric_coordinates(before, after)
        offsets = np.arange(after) - after // 2
        spline = make_interp_spline(coordinates, table, k=min(3, before - 1), axis=axis)
        table = spline(offsets.clip(coordinates[0], coordinates[-1]))
    return table


def geometric_coordinates(before: int, after: int) -> np.ndarray:
    """Return positions of `before` trained offsets among `after` new ones.

    Steps outwards from 0 grow as 1, q, q², …: near offsets keep their meaning, and the
    outermost reach the new outermost. Returns: [before] float64.
    """
    steps = spacing(before // 2, after // 2) ** np.arange(before // 2)
    half = np.cumsum(steps)
    return np.concatenate([-half[::-1], [0], half])


def spacing(steps: int, distance: int) -> float:
    """Solve 1 + q + … + q^(steps-1) = distance for q in 1.01..1.5, to 1e-6."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > distance:
            high = q
        else:
            low = q
    return q


def interpolate_positions(positions: np.ndarray, size: Size) -> np.ndarray:
    """Resample absolute positions for another grid: [h, w, d] -> [*size, d].

    Bicubic (Keys, a = -0.5) with antialiasing, as in Pillow and in PyTorch with
    antialias=True. The official code does not interpolate them.
    """
    shape = (*size, positions.shape[-1])
    return np.asarray(jax.image.resize(positions, shape, "cubic"))


def _distribute_shared_table(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Give each block in `old` the shared table, if the blocks in `new` have their own.

    A block that already has a table gets the sum.
    """
    blocks = _blocks(old)
    names = [n for n in new if n.endswith(f"/attn/{_TABLE}") and _block(n) in blocks]
    if names and _SHARED_TABLE in old and _SHARED_TABLE not in new:
        shared = old.pop(_SHARED_TABLE)
        old.update({n: old[n] + shared if n in old else shared for n in names})


def _decoder(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the names of the decoder's parameters if it is taken, and what to say."""
    there, here = (
        {name: np.shape(tree[name]) for name in tree if name.startswith("decoder")}
        for tree in (old, new)
    )
    if not there or not here:
        return [], ""
    if there == here:
        return list(here), f"restored the decoder: {', '.join(here)}"
    differ = min(n for n in there | here if there.get(n) != here.get(n))
    return [], (
        f"the decoder starts anew: {differ} is {there.get(differ, 'nothing')} in the "
        f"checkpoint, {here.get(differ, 'nothing')} here"
    )


def _report(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    matching: list[str],
    notes: list[str],
) -> str:
    """Lines that list what was restored, new and left out; notes: lines in between."""
    of_encoder = [name for name in matching if name.startswith("encoder/")]
    groups = dict.fromkeys(name.split("/")[1] for name in of_encoder)
    fresh = [name for name in new if name not in matching]
    # A block that is left out is listed as one entry.
    blocks = _blocks(new)
    unused = dict.fromkeys(
        name if _block(name) in blocks else _block(name) or name
        for name in old
        if name not in matching
    )
    lines = [
        f"restored {len(of_encoder)} of the encoder's parameters: {', '.join(groups)}",
        *notes,
        f"new: {', '.join(fresh) or 'nothing'}",
        f"left out: {', '.join(unused) or 'nothing'}",
    ]
    return "\n".join(lines)


def _differences(
    old: dict[str, Any], new: dict[str, Any], first_blocks: bool
) -> list[str]:
    """Differences of the encoders that interpolation and new parts do not explain."""
    there, here = _depths(old), _depths(new)
    if there != here and not (first_blocks and _is_prefix(here, there)):
        hint = "; --config.init_first_blocks=True takes the first ones"
        return [
            f"blocks: {_text(there, ', ')} in the checkpoint, {_text(here, ', ')} here"
            + (hint if _is_prefix(here, there) else "")
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
    """Block of a parameter, such as encoder/layers_0/blocks_1, or None."""
    match = _BLOCK.match(name)
    return match and match[0]


def _blocks(names: Iterable[str]) -> set[str]:
    return {block for name in names if (block := _block(name))}


def _depths(names: Iterable[str]) -> tuple[int, ...]:
    """Number of blocks, per stage if there are stages."""
    stages = Counter(re.sub(r"\bblocks_\d+", "", block) for block in _blocks(names))
    return tuple(stages[stage] for stage in sorted(stages))


def _is_prefix(here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether an encoder of depths `here` is the start of one of depths `there`."""
    last = len(here) - 1
    return (
        0 <= last < len(there)
        and here[:last] == there[:last]
        and here[last] <= there[last]
    )


def _on_grid(name: str, value: Any) -> slice:
    """Rows of a table, or of absolute positions, without those of the class token.

    A grid has an odd number of offsets; a class token adds three.
    """
    rows = np.shape(value)[-2]
    if name.endswith(_TABLE):
        return slice(0, rows if rows % 2 else rows - 3)
    return slice(1 if name.endswith("/pos_embed") else 0, rows)


def _size(name: str, value: Any, grid: Size | None) -> Size:
    """Height and width of a table [offsets], or of absolute positions [patches].

    grid: patch grid. A table without a class token belongs to a window and is square.
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
            f"{_text(grid) if grid else 'square'} grid of patches. Set "
            "--config.data.image_size='(height, width)' and --config.model.patch_size "
            "to those of the checkpoint."
        )
    return size


def _resize(name: str, value: Any, before: Size, after: Size) -> np.ndarray:
    """Interpolate the rows of the grid, and keep those of the class token."""
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
