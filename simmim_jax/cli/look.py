"""Draw what an encoder sees: features of patches, attention, a map of a data set.

    simmim look runs/mine /my/images
    simmim look runs/mine /my/images --images=32 --split=validation

features.png has images beside their patches: the first three principal components of
the features of all patches together are red, green and blue, so that alike patches have
alike colours in all images. attention.png has what the last
block of a ViT attends to, or that of --block. map.png places the images of the data set
by the first two components of their vectors, with some of them as thumbnails.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simmim_jax.cli import arguments
from simmim_jax.errors import UserError
from simmim_jax.runtime import platforms

if TYPE_CHECKING:  # they import JAX
    from simmim_jax.data.sources.base import Source
    from simmim_jax.tasks.encoder import Encoder

_MAX_IMAGES = 2000  # of a map


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the pictures."""
    parser = arguments.parser("look", __doc__)
    parser.add_argument("run", help="workdir of a run, or a checkpoint")
    parser.add_argument("dataset", help="images to look at")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument(
        "--images",
        type=int,
        default=16,
        help="images whose patches are drawn, from all over the set (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder of the pictures"
    )
    arguments.add_features(parser)
    args = parser.parse_args(argv)
    if args.images < 1:
        sys.exit(f"--images={args.images}: expected 1 or more.")
    platforms.leave_out_absent_tpu()
    from simmim_jax.data.sources.registry import open_source
    from simmim_jax.tasks.encoder import Encoder
    from simmim_jax.tasks.views import formats

    with arguments.explained():
        encoder = Encoder.load(args.run, pool=args.pool, block=args.block)
        print(f"{args.run}: {encoder.describe()}")
        source = open_source(
            args.dataset,
            args.split,
            data_dir=args.data_dir,
            formats=formats(encoder.config.data),
        )
        images = encoder.read(source, _spread(len(source), args.images))
        _draw_features(encoder, images, args.out / "features.png")
        _draw_attention(encoder, images, args.out / "attention.png")
        _draw_map(encoder, source, args.out / "map.png")


def _draw_features(encoder: "Encoder", images: np.ndarray, path: Path) -> None:
    """Draw images beside the principal components of their patches."""
    from simmim_jax.monitoring.pictures import feature_grid
    from simmim_jax.tasks import components
    from simmim_jax.tasks.display import displayed

    levels, shares = components.colours(encoder.features(images, prepared=True))
    feature_grid(displayed(encoder.config.data, images), levels, path)
    print(
        f"picture: {path}, {len(images)} images; red, green and blue hold "
        f"{', '.join(f'{share:.0%}' for share in shares)} of the variance of "
        f"{levels.shape[1]}x{levels.shape[2]} patches each"
    )


def _draw_attention(encoder: "Encoder", images: np.ndarray, path: Path) -> None:
    """Draw images beside what the last block attends to, or say why not."""
    from simmim_jax.monitoring.pictures import attention_grid
    from simmim_jax.tasks.display import displayed

    try:
        attention = encoder.attention(images, prepared=True)
    except UserError as error:
        print(f"no {path.name}: {error}")
        return
    attention_grid(displayed(encoder.config.data, images), attention, path)
    share = attention.sum((1, 2)).mean()
    print(
        f"picture: {path}, {len(images)} images; {share:.0%} of the attention goes to "
        "patches, the rest to the class token"
    )


def _draw_map(encoder: "Encoder", source: "Source", path: Path) -> None:
    """Draw images at the first two principal components of their vectors."""
    from simmim_jax.data.sources.base import SubsetSource
    from simmim_jax.monitoring import charts
    from simmim_jax.tasks import components
    from simmim_jax.tasks.display import displayed
    from simmim_jax.tasks.embed import embedded

    some = SubsetSource(source, _spread(len(source), _MAX_IMAGES))
    found = embedded(encoder, some, "embedding")
    if len(found.vectors) < 2:
        raise UserError(
            f"{len(found.vectors)} images can be read: expected 2 or more for a map."
        )
    fitted = components.fit(found.vectors, 2)
    places = fitted.project(found.vectors)
    chosen = charts.spread_out(places)
    images = encoder.read(some, found.indices[chosen])
    charts.image_map(
        places,
        displayed(encoder.config.data, images),
        chosen,
        found.labels,
        source.class_names,
        fitted.shares,
        path,
    )
    print(
        f"picture: {path}, {len(places):,} of {len(source):,} images; its axes hold "
        f"{fitted.shares.sum():.0%} of the variance"
    )


def _spread(total: int, count: int) -> np.ndarray:
    """Return evenly spaced indices, at most `count`."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)
