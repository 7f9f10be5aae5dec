"""Number and content of the shards of a data set."""

import dataclasses

import numpy as np
import pytest

from simmim_jax.data.pack.plan import compare, make_plan, shards_of
from simmim_jax.data.pack.shards import Options
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError


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


def test_options_of_an_older_release_had_their_defaults():
    now = {"options": dataclasses.asdict(Options())}
    before = {name: now["options"][name] for name in ("short_side", "format")}
    compare({"options": before}, now, "out")
    with pytest.raises(UserError, match=r"max_file_mb: 256 before, 7 now"):
        compare(
            {"options": before}, {"options": now["options"] | {"max_file_mb": 7}}, "out"
        )
