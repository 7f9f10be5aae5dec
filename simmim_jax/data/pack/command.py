"""Pack a data set into ArrayRecord shards, resume packing, or verify the result.

An interrupted command resumes when it is run again, and ends with the same bytes.
"""

import collections
import json
import os
import re
import shutil
import time
from typing import Any

import numpy as np

from simmim_jax.data.pack.folder import begin, check_out, is_complete, locked
from simmim_jax.data.pack.plan import compare, make_plan, shards_of
from simmim_jax.data.pack.processes import Processes
from simmim_jax.data.pack.shards import (
    Options,
    Shard,
    report_path,
    verify_shard,
    write_atomically,
    write_shard,
)
from simmim_jax.data.sources import packed
from simmim_jax.data.sources.base import known_labels
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError


def pack(
    dataset: str,
    out: str,
    splits: dict[str, str],
    options: Options,
    *,
    data_dir: str = "",
    workers: int,
    shard_mb: float = 64,
) -> None:
    """Pack splits of a data set into the folder `out`, or resume packing there.

    dataset, data_dir: see `open_source`; splits: {name in `out`: split of `dataset`};
    workers: processes; shard_mb: approximate size of a shard [MB].
    raises: UserError if data cannot be packed, OSError if a file cannot be written, and
    the errors of `open_source`.
    """
    out = os.path.expanduser(out)
    root = os.path.abspath(os.path.expanduser(dataset))
    check_out(out, root)
    if os.path.isfile(root):
        root = os.path.dirname(root)
    sources = {
        name: open_source(
            dataset, split, data_dir=data_dir, max_bytes=options.max_file_mb * 10**6
        )
        for name, split in splits.items()
    }
    for name, source in sources.items():
        if unlabelled := getattr(source, "unlabelled", ""):
            print(f"{name}: packed without classes. {unlabelled}")
    plan, num_bytes = make_plan(sources, root, options, shard_mb)
    if os.path.exists(os.path.join(out, packed.INDEX)):
        compare(packed.read_index(out)["plan"], plan, out)
        shutil.rmtree(os.path.join(out, packed.UNFINISHED), ignore_errors=True)
        print(f"{out} is already complete.")
        verify(out, workers)
        return
    shards = shards_of(plan)
    workers = min(workers, len(shards))
    with (
        locked(out),
        Processes(workers, out, root, sources, options) as processes,
    ):
        begin(out, plan, num_bytes)
        _write(out, shards, processes, workers)
        index = {
            "format": packed.FORMAT_ID,
            "format_version": packed.FORMAT_VERSION,
            "source": {"dataset": dataset, "splits": splits},
            "plan": plan,
        }
        _finish(out, index, shards, processes)


def verify(out: str, workers: int) -> None:
    """Read a packed data set and compare sizes, counts, checksums and labels.

    raises: UserError or OSError, which name the file, if the content has changed.
    """
    out = os.path.expanduser(out)
    splits = packed.read_index(out)["splits"]
    expected = {name: packed.open_packed(out, name).labels for name in splits}
    with Processes(workers, out, "", {}, Options()) as processes:
        found = _verify(out, splits, processes)
    for name, labels in expected.items():
        if labels is not None and not np.array_equal(labels, found[name]):
            file = os.path.join(out, splits[name]["labels"])
            raise UserError(
                f"{file!r} has other labels than the records: expected the same. "
                f"{packed.WHAT_TO_DO}"
            )


def _write(out: str, shards: list[Shard], processes: Processes, workers: int) -> None:
    """Write the shards that do not exist yet."""
    todo = [shard for shard in shards if not is_complete(out, shard)]
    total, left = (sum(s.stop - s.start for s in part) for part in (shards, todo))
    if len(todo) < len(shards):
        print(f"{len(shards) - len(todo)} of {len(shards)} shards already exist")
    if not todo:
        return
    start = time.perf_counter()
    processes.map(write_shard, todo, "packing", total, total - left)
    seconds = time.perf_counter() - start
    print(
        f"packed {left:,} images in {seconds:.0f} s: {left / seconds:.0f}/s in "
        f"{workers} processes"
    )


def _verify(
    out: str, splits: dict[str, Any], processes: Processes
) -> dict[str, np.ndarray]:
    """Read all shards; return the labels int32 [n] of each split."""
    shards = [shard for split in splits.values() for shard in split["shards"]]
    total = sum(shard["num_examples"] for shard in shards)
    labels = iter(processes.map(verify_shard, shards, "verifying", total))
    print(f"verified {total:,} records in {len(shards)} shards: no differences")
    return {
        name: np.concatenate([next(labels) for _ in split["shards"]])
        for name, split in splits.items()
    }


def _finish(
    out: str, index: dict[str, Any], shards: list[Shard], processes: Processes
) -> None:
    """Verify all shards, write the index and its neighbours, and print a summary."""
    splits: dict[str, Any] = {
        name: {"class_names": split["class_names"], "shards": []}
        for name, split in index["plan"]["splits"].items()
    }
    skipped: list[list[str]] = []
    source_bytes = 0
    for shard in shards:
        with open(report_path(out, shard.file), encoding="utf-8") as file:
            report = json.load(file)
        skipped += [[shard.split, *entry] for entry in report.pop("skipped")]
        source_bytes += report.pop("source_bytes")
        splits[shard.split]["shards"].append({"file": shard.file, **report})
    for name, labels in _verify(out, splits, processes).items():
        if not len(labels):
            raise UserError(
                f"split={name!r} has no image that can be packed: expected at least "
                f"one. Repair the images, or leave the split out with --splits."
            )
        split = splits[name]
        split["num_examples"] = len(labels)
        is_labelled = known_labels(labels) is not None
        split["labels"] = f"{name}-labels.npy" if is_labelled else None
        if split["labels"]:
            np.save(os.path.join(out, split["labels"]), labels, allow_pickle=False)
    reasons = collections.Counter(reason for _, _, reason, _ in skipped)
    index = {**index, "skipped": dict(reasons), "splits": splits}
    write_atomically(os.path.join(out, "skipped.tsv"), _table(skipped))
    write_atomically(os.path.join(out, packed.INDEX), json.dumps(index, indent=1))
    shutil.rmtree(os.path.join(out, packed.UNFINISHED))

    for name, split in splits.items():
        count = len(split["shards"])
        classes = f"{len(split['class_names']):,} classes"
        print(
            f"{name}: {split['num_examples']:,} images in {count} shards, "
            f"{classes if split['labels'] else 'without labels'}"
        )
    num_bytes = sum(s["bytes"] for split in splits.values() for s in split["shards"])
    print(f"{num_bytes / 1e6:,.1f} MB, of {source_bytes / 1e6:,.1f} MB in the source")
    if skipped:
        counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
        print(f"skipped {len(skipped):,} images: {counts}; see {out}/skipped.tsv")
    print(f"To read it: --config.data.dataset={out}")


def _table(skipped: list[list[str]]) -> str:
    rows = [["split", "path", "reason", "message"], *skipped]
    return "".join(
        "\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in row) + "\n"
        for row in rows
    )
