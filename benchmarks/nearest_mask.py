"""Segmentation of configs/brain.py without a model: the mask of the nearest slice.

    python -m benchmarks.nearest_mask

For each seed, answers every held-out slice with the mask of that labelled slice, of
those that `simmim train --config=brain` learns from, which is nearest in height. Models
are not told the height of a slice.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from simmim_jax.config import schema
from simmim_jax.configs import brain
from simmim_jax.data.sources.base import Source
from simmim_jax.tasks import inputs, segment
from simmim_jax.tasks.segment_step import confusion, intersection_over_union
from simmim_jax.tasks.values import assume
from simmim_jax.tasks.views import eval_view


def slices(data: schema.SegmentData, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return heights [n], the numbers of files, and masks uint16 [n h w]."""
    view, rng = eval_view(data), np.random.default_rng(0)
    examples = [source[i] for i in range(len(source))]
    heights = [int(Path(example["path"]).stem) for example in examples]
    return np.array(heights), np.stack([view(e, rng)["mask"] for e in examples])


def main() -> None:
    """Print mIoU and pixel accuracy of each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    config = assume(schema.parse(brain.get_config().finetune))
    assert isinstance(config, schema.Segment)
    data = config.data
    train, held_out = (
        segment.with_masks(inputs.open_split(data, split), split)[0]
        for split in (data.train_split, data.eval_split)
    )
    num_classes = len(segment.mask_classes(train))
    heights, held_out_masks = slices(data, held_out)
    truth = jnp.asarray(held_out_masks)
    for seed in range(args.seeds):
        chosen = segment.some_of(train, data.num_masks, seed)
        known, masks = slices(data, chosen)
        nearest = np.abs(heights[:, None] - known).argmin(1)
        copied = jnp.asarray(masks[nearest])
        counts = np.asarray(confusion(truth, copied, num_classes, data.ignore_index))
        miou = np.nanmean(intersection_over_union(counts))
        accuracy = np.trace(counts) / counts.sum()
        print(f"seed {seed}: mIoU {miou:.2%}, pixel accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
