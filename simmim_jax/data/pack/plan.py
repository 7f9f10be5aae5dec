"""The plan of `simmim pack`: options, shards, and a fingerprint of the source."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from simmim_jax.data.pack.shards import (
    SKIPPED,
    Options,
    Shard,
    num_bytes,
    pack_image,
    relative,
)
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.base import Source
from simmim_jax.errors import UserError

# Examples that identify the source, and how many of them are packed to estimate the
# size.
_SAMPLE, _PACKED_SAMPLE = 64, 16
# Small data sets also get shards for several processes, of at least 50 examples.
_SMALL_SET_SHARDS, _SMALL_SHARD_EXAMPLES = 16, 50
# Packages that influence the bytes; the plan records their versions.
_PACKAGES = ("array_record", "numpy", "opencv-python-headless", "pillow", "simplejpeg")


def make_plan(
    sources: dict[str, Source], root: str, options: Options, shard_mb: float
) -> tuple[dict[str, Any], float]:
    """Return the plan, which can be stored as JSON, and the estimated size [bytes].

    root: folder that stored paths are relative to.
    raises: UserError if a source is empty or none of its images can be packed.
    """
    total_bytes = 0.0
    splits = {}
    for name, source in sources.items():
        mean_bytes, digest = _sample(name, source, root, options)
        split_bytes = mean_bytes * len(source)
        num_shards = max(
            math.ceil(split_bytes / (shard_mb * 1e6)),
            min(_SMALL_SET_SHARDS, len(source) // _SMALL_SHARD_EXAMPLES),
        )
        num_shards = min(num_shards, packed.MAX_SHARDS, len(source))
        total_bytes += split_bytes
        splits[name] = {
            "num_source_examples": len(source),
            "num_shards": num_shards,
            "sample_blake2b": digest,
            "class_names": list(source.class_names),
        }
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    plan = {
        "options": dataclasses.asdict(options),
        "versions": versions,
        "splits": splits,
    }
    return plan, total_bytes


def shards_of(plan: dict[str, Any]) -> list[Shard]:
    """Return all shards of all splits, with equal numbers of examples."""
    shards = []
    for name, split in plan["splits"].items():
        num_examples, count = split["num_source_examples"], split["num_shards"]
        bounds = [num_examples * i // count for i in range(count + 1)]
        shards += [
            Shard(name, f"{name}-{i:05}-of-{count:05}.array_record", start, stop)
            for i, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
    return shards


def _sample(
    name: str, source: Source, root: str, options: Options
) -> tuple[float, str]:
    """Return the mean size of packed images, and a checksum of a sample."""
    if not len(source):
        raise UserError(
            f"split={name!r} is empty: expected at least one example. Add images, or "
            "leave the split out with --splits."
        )
    count = min(_SAMPLE, len(source))
    indices = np.linspace(0, len(source) - 1, count).astype(int)
    digest = hashlib.blake2b(digest_size=16)
    sizes: list[int] = []
    error: Exception | None = None
    # Shuffled, so that the packed ones come from all classes.
    for index in np.random.default_rng(0).permutation(indices).tolist():
        try:
            example = source[index]
            path = relative(example.get("path", ""), root)
            image = example["image"]
            digest.update(packed.to_record(image, example["label"], path))
            if len(sizes) < _PACKED_SAMPLE:
                image = pack_image(image, options)
                digest.update(packed.description(image))
                sizes.append(num_bytes(image))
        except SKIPPED as skipped:
            error = skipped
            digest.update(type(error).__name__.encode())
    if not sizes:
        raise UserError(
            f"split={name!r}: none of {count} sampled images of {len(source)} can be "
            f"packed. Repair them, or leave the split out with --splits. The last "
            f"error: {error}"
        ) from error
    return sum(sizes) / len(sizes), digest.hexdigest()


def compare(stored: Any, plan: dict[str, Any], out: str) -> None:
    """Raise UserError, which lists differences, unless both plans are the same.

    stored: read from a file, and maybe damaged.
    """
    then = dict(_leaves(stored)) if isinstance(stored, dict) else {}
    now = dict(_leaves(plan))
    # An option that did not exist then had what is its default now.
    for option, default in _leaves({"options": dataclasses.asdict(Options())}):
        if option in now:
            then.setdefault(option, default)
    differences = [
        f"{key}: {then.get(key)!r} before, {now.get(key)!r} now"
        for key in dict.fromkeys((*then, *now))
        if then.get(key) != now.get(key)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"{out!r} was packed from other data or with other options: "
            f"{'; '.join(differences[:5])}{more}. Use the same data and options, or "
            "pack into another folder."
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
