"""Number and content of the shards of a data set."""

import numpy as np

from simmim_jax.data.pack.plan import make_plan, shards_of
from simmim_jax.data.pack.shards import Options
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.registry import open_source


def test_shards_contain_every_example_once():
    source = open_source("bundled:climate", "train")
    for shard_mb, count in ((1e6, 16), (57, 16), (2, 29), (0.001, packed.MAX_SHARDS)):
        plan, num_bytes = make_plan({"a": source}, "", Options(0), shard_mb)
        assert num_bytes == source.images.nbytes
        shards = shards_of(plan)
        assert len(shards) == count
        indices = [range(shard.start, shard.stop) for shard in shards]
        assert np.concatenate(indices).tolist() == list(range(len(source)))
        assert {len(part) for part in indices} <= {
            len(source) // count,
            len(source) // count + 1,
        }
