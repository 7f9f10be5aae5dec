"""Charts of models: what is confused, how sure it is, which images are alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simmim_jax.monitoring.pictures import (
    INK,
    LINE_COLOURS,
    new_figure,
    save_figure,
    shortened,
    to_rgb,
)

# Classes up to which a confusion matrix has names and numbers.
_NAMED, _NUMBERED = 40, 20
_MAX_NAME = 18  # characters
# Longer side of a thumbnail, as a share of a map's.
_THUMBNAIL = 0.05


def confusion(matrix: np.ndarray, names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix, each row in shares of its true class.

    matrix: int [classes, classes], rows are true classes; names: of the classes.
    Returns: the path.
    """
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.5 * classes, 4.6, 11))
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    bar.set_label("of the true class", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    if classes <= _NAMED:
        labels = [shortened(name, _MAX_NAME) for name in names]
        axes.set_xticks(range(classes), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
    if classes <= _NUMBERED:
        for row, column in np.argwhere(matrix):
            axes.text(
                column,
                row,
                f"{matrix[row, column]:,}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.6 else INK,
            )
    axes.tick_params(labelsize=8, length=0, labelcolor=INK)
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.spines[:].set_visible(False)
    return save_figure(figure, path)


def reliability(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: str | Path
) -> Path:
    """Draw how often predictions are right by their probability.

    curves: {name: (images, confidence, accuracy)}, numbers and means [bins] in equal
    intervals of probability. Returns: the path.
    """
    figure = new_figure(5.2, 5.8)
    top, bottom = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    top.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, label="as sure as right")
    for colour, (name, (images, confidence, accuracy)) in zip(
        LINE_COLOURS, curves.items(), strict=False
    ):
        some = images > 0
        style = {"color": colour, "linewidth": 1.6}
        top.plot(
            confidence[some],
            accuracy[some],
            marker="o",
            markersize=4,
            label=name,
            **style,
        )
        bottom.stairs(images, np.linspace(0, 1, len(images) + 1), **style)
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.set_ylabel("share that is right", color=INK)
    bottom.set_ylabel("images", color=INK)
    bottom.set_xlabel("probability of the predicted class", color=INK)
    bottom.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    top.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    top.legend(
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )
    for axes in (top, bottom):
        axes.grid(color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(labelsize=9, color="#999999", labelcolor=INK)
    return save_figure(figure, path)


def spread_out(places: np.ndarray) -> np.ndarray:
    """Return int [k]: images of a map whose thumbnails do not overlap.

    places: [n, 2]. Earlier images come first.
    """
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - low) / np.maximum(high - low, 1e-12)
    chosen: list[int] = []
    for index, place in enumerate(scaled):
        away = np.abs(scaled[chosen] - place).max(axis=1, initial=0)
        if (away >= _THUMBNAIL).all():
            chosen.append(index)
    return np.array(chosen)


def image_map(
    places: np.ndarray,
    thumbnails: np.ndarray,
    chosen: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    shares: np.ndarray,
    path: str | Path,
) -> Path:
    """Draw images as points, some of them as thumbnails.

    places: [n, 2]; thumbnails: uint8 [k, h, w, c] of the images `chosen` int [k];
    labels: int [n], -1 for none; names: of the classes, which colour points where there
    are few; shares: of the variance, [2]. Returns: the path.
    """
    figure = new_figure(8.4, 8.4)
    from matplotlib.patches import Rectangle

    axes = figure.add_subplot()
    coloured = 0 < len(names) <= len(LINE_COLOURS)
    of_point = labels if coloured else np.full(len(places), -1)
    for label in np.unique(of_point):
        some = of_point == label
        axes.scatter(
            places[some, 0],
            places[some, 1],
            s=12,
            color="#AAAAAA" if label < 0 else LINE_COLOURS[label],
            label="" if label < 0 else shortened(names[label], _MAX_NAME),
            linewidths=0,
        )
    low, high = places.min(axis=0), places.max(axis=0)
    height, width = thumbnails.shape[1:3]
    size = np.array([width, height]) / max(width, height)
    half = 0.96 * _THUMBNAIL / 2 * size * np.maximum(high - low, 1e-12)
    for index, image in zip(chosen, to_rgb(thumbnails), strict=True):
        x, y = places[index]
        box = (x - half[0], x + half[0], y - half[1], y + half[1])
        axes.imshow(image, extent=box, aspect="auto", zorder=3)
        if of_point[index] >= 0:
            axes.add_patch(
                Rectangle(
                    (box[0], box[2]),
                    *(2 * half),
                    fill=False,
                    edgecolor=LINE_COLOURS[of_point[index]],
                    linewidth=1.6,
                    zorder=4,
                )
            )
    axes.set_xlim(low[0] - 2 * half[0], high[0] + 2 * half[0])
    axes.set_ylim(low[1] - 2 * half[1], high[1] + 2 * half[1])
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"first component, {shares[0]:.0%} of the variance", color=INK)
    axes.set_ylabel(f"second component, {shares[1]:.0%}", color=INK)
    axes.spines[:].set_color("#CCCCCC")
    if coloured:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=4,
            frameon=False,
            markerscale=2.5,
            labelcolor=INK,
            fontsize=9,
        )
    return save_figure(figure, path)
