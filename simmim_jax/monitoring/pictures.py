"""Pictures of a run as PNG files: reconstructions, curves, predictions."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from simmim_jax.errors import UserError

if TYPE_CHECKING:  # it takes 0.8 s to import, and most of a run draws nothing with it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MASK_GREY = 205
MIN_CELL_SIZE = 96  # pixels; smaller images are enlarged
# Images this many times as wide as high, such as lines of text, stand below each other
# and are enlarged to this height [pixels].
LINE_ASPECT, MIN_LINE_HEIGHT = 4, 32
MAX_BARS = 5
MAX_NAME_LENGTH = 30

# Okabe & Ito (2008): distinguishable with any kind of colour vision.
LINE_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
INK = "#222222"
BAR, RIGHT_BAR, WRONG_BAR = "#C9DCEB", "#8FD1B8", "#F2B896"
RIGHT_INK, WRONG_INK = "#00664A", "#A84800"

FIGURE_WIDTH, DPI = 8.0, 150  # inches, pixels per inch: 1200 pixels wide


def reconstruction_grid(
    images: np.ndarray,
    masks: np.ndarray,
    reconstructions: np.ndarray,
    path: str | Path,
) -> Path:
    """Draw examples as rows of original, masked, reconstruction and pasted.

    "reconstruction" is the prediction at every pixel; "pasted" has it only where the
    image was masked. With four examples or more, a row holds two. Images smaller than
    96 pixels are enlarged by an integer factor.

    Args:
      images: [n, h, w, c] uint8. The first three channels are shown, or the mean in
        grey if there are fewer.
      masks: [n, h, w] bool, True = masked.
      reconstructions: [n, h, w, c] float, clipped to 0..255; NaN becomes black.
      path: file to write; its folder is created.

    Returns: the path. Raises UserError for other shapes.
    """
    images, masks = _check_images(images), np.asarray(masks, bool)
    _check_shape("masks", masks, images.shape[:3])
    _check_shape("reconstructions", np.asarray(reconstructions), images.shape)
    images, predicted = to_rgb(images), to_rgb(_to_uint8(reconstructions))
    masks = masks[..., None]
    panels = {
        "original": images,
        "masked": np.where(masks, np.uint8(MASK_GREY), images),
        "reconstruction": predicted,
        "pasted": np.where(masks, predicted, images),
    }
    return _draw_panels(panels, path)


def augmentation_grid(
    images: np.ndarray, augmented: np.ndarray, path: str | Path
) -> Path:
    """Draw images beside their augmented versions, like `reconstruction_grid`.

    images: [n, h, w, c] uint8. augmented: [n, h, w, c] float, 0..255. Returns: the
    path. Raises UserError for other shapes.
    """
    images = _check_images(images)
    _check_shape("augmented", np.asarray(augmented), images.shape)
    panels = {"original": to_rgb(images), "augmented": to_rgb(_to_uint8(augmented))}
    return _draw_panels(panels, path)


def mask_grid(
    images: np.ndarray,
    masks: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    ignore_index: int,
) -> Path:
    """Draw images beside masks in the colours of `mask_palette`.

    images: [n, h, w, c] uint8; masks: [n, h, w] of class indices, by caption;
    ignore_index: drawn in grey. Returns: the path. Raises UserError for other shapes.
    """
    images, palette = _check_images(images), mask_palette()
    panels = {"image": to_rgb(images)}
    for name, mask in masks.items():
        _check_shape(name, mask, images.shape[:3])
        colours = palette[mask % len(palette)]
        panels[name] = np.where(
            (mask == ignore_index)[..., None], np.uint8(MASK_GREY), colours
        )
    return _draw_panels(panels, path)


def mask_palette() -> np.ndarray:
    """Return uint8[256 3]: a colour for each class, black for 0 (PASCAL VOC's).

    The bits of an index are dealt out to red, green and blue, lowest bits to the
    highest bits of the colour.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1]
    # Bits 0, 3, 6 are red's, 1, 4, 7 green's, 2, 5 blue's.
    weights = np.array([128, 64, 32])
    return np.stack(
        [bits[:, c::3] @ weights[: bits[:, c::3].shape[1]] for c in range(3)], axis=1
    ).astype(np.uint8)


def neighbour_grid(
    queries: np.ndarray, neighbours: np.ndarray, path: str | Path
) -> Path:
    """Draw a row for each query: itself, then its neighbours, most similar first.

    queries: [n, h, w, c] uint8; neighbours: [n, k, h, w, c] uint8. Returns: the path.
    """
    columns = {"query": to_rgb(_check_images(queries))}
    for rank in range(neighbours.shape[1]):
        columns[str(rank + 1)] = to_rgb(_check_images(neighbours[:, rank]))
    return _draw_panels(columns, path)


def feature_grid(images: np.ndarray, features: np.ndarray, path: str | Path) -> Path:
    """Draw images beside their features, a coloured square for each patch.

    images: [n, h, w, c] uint8, shown as in `reconstruction_grid`; features:
    [n, gh, gw, 3] uint8. Returns: the path.
    """
    images = to_rgb(_check_images(images))
    patches = _enlarged(features, images.shape[1:3])
    return _draw_panels({"image": images, "features": patches}, path)


def attention_grid(images: np.ndarray, attention: np.ndarray, path: str | Path) -> Path:
    """Draw images beside what is attended to, yellow where that is most in an image.

    images: as in `feature_grid`; attention: [n, gh, gw], 0 or more. Returns: the path.
    """
    images = to_rgb(_check_images(images))
    shares = attention / attention.max((1, 2), keepdims=True)
    levels = np.rint(255 * shares).astype(np.uint8)
    patches = _enlarged(levels, images.shape[1:3])
    lit = np.rint(images * (patches[..., None] / 255)).astype(np.uint8)
    # In grey, even attention would be white on white.
    shown = {"image": images, "attention": perceptual(patches), "attended": lit}
    return _draw_panels(shown, path)


def perceptual(levels: np.ndarray) -> np.ndarray:
    """Return uint8 [...] as colours uint8 [... 3], whose steps look equal: viridis."""
    import matplotlib

    return matplotlib.colormaps["viridis"](levels, bytes=True)[..., :3]


def _enlarged(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [n, gh, gw, ...] as a square for each patch of images of `size`."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(each).resize(size[::-1], Image.Resampling.NEAREST)
            )
            for each in patches
        ]
    )


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence, Sequence]]],
    path: str | Path,
    *,
    xlabel: str = "step",
) -> Path:
    """Draw line charts side by side, one panel a key: {title: {name: (xs, ys)}}.

    NaN and None leave gaps. Returns: the path. Raises UserError if `panels` is empty,
    or xs and ys differ in length.
    """
    if not panels:
        raise UserError("panels is empty. Expected {title: {name: (xs, ys)}}.")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = 3.1 * rows if columns > 1 else 4.2
    figure = new_figure(FIGURE_WIDTH, height)
    grid = figure.add_gridspec(rows, columns, wspace=0.06, hspace=0.06)
    for index, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _draw_curves(axes, title, lines)
        axes.set_xlabel(xlabel, color=INK)
    return save_figure(figure, path)


def histograms(
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path
) -> Path:
    """Draw the distribution of values of each band: {name: (shares, edges)}.

    shares: [bins], of all values; edges: [bins + 1]. Returns: the path.
    """
    columns = min(len(bands), 3)
    rows = -(-len(bands) // columns)
    figure = new_figure(FIGURE_WIDTH, 1.9 * rows)
    grid = figure.add_gridspec(rows, columns, wspace=0.06, hspace=0.06)
    for index, (name, (shares, edges)) in enumerate(bands.items()):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        axes.stairs(shares, edges, fill=True, color=LINE_COLOURS[0])
        write_title(axes, name, INK)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=8, color="#999999", labelcolor=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return save_figure(figure, path)


def prediction_grid(
    images: np.ndarray,
    names: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    path: str | Path,
    true_names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw images, each beside bars of its most probable classes.

    Args:
      images: [n, h, w, c] uint8, shown as in `reconstruction_grid`.
      names: class names per image, most probable first; at most five are shown.
      probabilities: one per name, 0..1.
      path: file to write; its folder is created.
      true_names: correct class of each image, to mark hits and misses.
      titles: line above each image.

    Returns: the path. Raises UserError if lengths do not match.
    """
    images = _check_images(images)
    for label, values in {
        "names": names,
        "probabilities": probabilities,
        "true_names": true_names,
        "titles": titles,
    }.items():
        if values is not None and len(values) != len(images):
            raise UserError(
                f"{label} has {len(values)} entries for images of shape "
                f"{images.shape}. Expected one per image."
            )
    is_line = _is_line(*images.shape[1:3])
    columns = 1 if is_line else min(len(images), 2)
    rows = -(-len(images) // columns)
    figure = new_figure(FIGURE_WIDTH * (1 if is_line else columns / 2), 1.75 * rows)
    ratios = [1.6, 1] if is_line else [1, 1.6]
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=ratios * columns)
    for index, image in enumerate(to_rgb(images)):
        row, column = index // columns, 2 * (index % columns)
        picture = figure.add_subplot(grid[row, column])
        picture.imshow(image, interpolation="nearest")
        picture.set_anchor("N")
        picture.set_axis_off()
        if titles is not None:
            write_title(picture, titles[index], INK)
        _draw_bars(
            figure.add_subplot(grid[row, column + 1]),
            names[index],
            probabilities[index],
            None if true_names is None else true_names[index],
        )
    return save_figure(figure, path)


def _check_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
        raise UserError(
            f"images is {images.dtype}{list(images.shape)}. Expected uint8[n, h, w, c]."
        )
    return images


def _check_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise UserError(
            f"{name} has shape {array.shape}: expected {expected}, to match images."
        )


def to_rgb(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] uint8 -> [n, h, w, 3] uint8."""
    if images.shape[-1] >= 3:
        return images[..., :3]
    grey = images.mean(axis=-1).astype(np.uint8)
    return repeat(grey, "n h w -> n h w c", c=3)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round and clip to 0..255; NaN becomes black."""
    pixels = np.nan_to_num(np.asarray(pixels, np.float32))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _draw_panels(panels: Mapping[str, np.ndarray], path: str | Path) -> Path:
    """Draw a column per caption, or a row for wide images; small ones are enlarged.

    panels: {caption: [n, h, w, 3] uint8}.
    """
    cells = np.stack(list(panels.values()), axis=1)
    height, width = cells.shape[2:4]
    is_line = _is_line(height, width)
    side = MIN_LINE_HEIGHT if is_line else MIN_CELL_SIZE
    scale = max(-(-side // min(height, width)), 1)
    cells = repeat(cells, "n p h w c -> n p (h sh) (w sw) c", sh=scale, sw=scale)
    join = _join_lines if is_line else _join_cells
    with _atomic(path) as temporary:
        join(cells, list(panels)).save(temporary, format="PNG")
    return Path(path)


def _is_line(height: int, width: int) -> bool:
    return width >= LINE_ASPECT * height


def _join_lines(panels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Join lines [n, p, h, w, 3] uint8 below each other, with captions before them."""
    height = panels.shape[2]
    gap = height // 8
    font = _caption_font(height / 2.2)
    left = round(max(map(font.getlength, captions))) + 4 * gap
    padding = [(0, 0), (0, 0), (gap, gap), (left, 2 * gap), (0, 0)]
    lines = np.pad(panels, padding, constant_values=255)
    groups = rearrange(lines, "n p h w c -> n (p h) w c")
    groups = np.pad(
        groups, [(0, 0), (gap, 2 * gap), (0, 0), (0, 0)], constant_values=255
    )
    canvas = Image.fromarray(rearrange(groups, "n h w c -> (n h) w c"))
    draw = ImageDraw.Draw(canvas)
    for group in range(len(panels)):
        for row, caption in enumerate(captions):
            top = group * groups.shape[1] + gap + row * lines.shape[2]
            centre = top + lines.shape[2] / 2
            draw.text((2 * gap, centre), caption, fill=INK, font=font, anchor="lm")
    return canvas


def _join_cells(panels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Join cells [n, p, h, w, 3] uint8 in one picture, with captions above columns."""
    n, w = len(panels), panels.shape[3]
    groups = 2 if n >= 4 else 1
    gap = max(w // 24, 4)
    margin = 3 * gap
    font = _caption_font(w / 8.5)  # "reconstruction" then fills most of a column
    header = w // 4

    def padded(array: np.ndarray, *padding: tuple[int, int]) -> np.ndarray:
        none = [(0, 0)] * (array.ndim - len(padding) - 1)
        return np.pad(array, [*none, *padding, (0, 0)], constant_values=255)

    blanks = np.full((-n % groups, *panels.shape[1:]), 255, np.uint8)
    cells = padded(np.concatenate([panels, blanks]), (0, gap), (0, gap))
    strips = rearrange(cells, "n p h w c -> n h (p w) c")
    strips = padded(strips, (0, 0), (0, 3 * gap))
    grid = rearrange(strips, "(r g) h w c -> (r h) (g w) c", g=groups)
    grid = grid[:-gap, : -4 * gap]
    canvas = Image.fromarray(padded(grid, (header, margin), (margin, margin)))

    draw = ImageDraw.Draw(canvas)
    for group in range(groups):
        for column, caption in enumerate(captions):
            left = margin + group * strips.shape[2] + column * (w + gap)
            centre = (left + w / 2, header / 2)
            draw.text(centre, caption, fill=INK, font=font, anchor="mm")
    return canvas


def _caption_font(size: float) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size [inches]."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as PNG, atomically; return the path."""
    with _atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _draw_curves(
    axes: "Axes", title: str, lines: Mapping[str, tuple[Sequence, Sequence]]
) -> None:
    for index, (name, (xs, ys)) in enumerate(lines.items()):
        x, y = np.asarray(xs, float), np.asarray(ys, float)
        if x.ndim != 1 or x.shape != y.shape:
            raise UserError(
                f"curve {name!r} of panel {title!r} has xs of shape {x.shape} and ys "
                f"of shape {y.shape}. Expected the same length."
            )
        axes.plot(
            x,
            y,
            label=name,
            color=LINE_COLOURS[index % len(LINE_COLOURS)],
            linestyle=("-", "--", ":")[index // len(LINE_COLOURS) % 3],
            linewidth=1.6,
            marker="o" if len(x) <= 20 else None,
            markersize=3.5,
        )
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=9, color="#999999", labelcolor=INK)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    if lines:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_bars(
    axes: "Axes",
    names: Sequence[str],
    probabilities: Sequence[float],
    true_name: str | None,
) -> None:
    if not names or len(names) != len(probabilities):
        raise UserError(
            f"{len(names)} names and {len(probabilities)} probabilities for one image. "
            "Expected at least one, and as many of each."
        )
    names, probabilities = names[:MAX_BARS], probabilities[:MAX_BARS]
    for row, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        colour = BAR
        if true_name is not None and name == true_name:
            colour = RIGHT_BAR
        elif true_name is not None and row == 0:
            colour = WRONG_BAR
        axes.barh(row, 1, color="#F4F4F4", height=0.8)
        axes.barh(row, probability, color=colour, height=0.8)
        style: dict[str, Any] = {
            "va": "center",
            "fontsize": 8,
            "color": INK,
            "parse_math": False,
        }
        axes.text(0.02, row, shortened(name), ha="left", **style)
        axes.text(1.03, row, f"{probability:.0%}", ha="left", **style)
    axes.set(xlim=(0, 1.2), ylim=(MAX_BARS - 0.6, -0.4))
    axes.set_axis_off()
    if true_name is not None and names[0] == true_name:
        write_title(axes, f"✓ true: {shortened(true_name)}", RIGHT_INK)
    elif true_name is not None:
        write_title(axes, f"✗ true: {shortened(true_name)}", WRONG_INK)


def write_title(axes: "Axes", text: str, colour: str) -> None:
    """Write a title; "$" in a file or class name must not start a formula."""
    title = axes.set_title(text, loc="left", fontsize=8.5, color=colour, pad=4)
    title.set_parse_math(False)


def shortened(name: str, length: int = MAX_NAME_LENGTH) -> str:
    """Return at most `length` characters of a name."""
    return name if len(name) <= length else name[: length - 1] + "…"


@contextmanager
def _atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` once it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
