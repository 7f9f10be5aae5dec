"""Pre-trained parameters into a fine-tuning model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"encoder/rel_pos_bias/{_TABLE}"


def transfer(
    pretrained: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Replaces the encoder's parameters in `params` by pre-trained ones.

    pretrained: parameters of a pre-training run, or of another classifier; params:
    those of the new model. A table that the pre-trained blocks share is copied to each
    block (official `remap_pretrained_keys_vit`). Returns the new parameters and a
    report of what matched, what is new and what was left out. ValueError where shapes
    differ or nothing matches.
    """
    old = flatten_dict(pretrained, sep="/")
    new = flatten_dict(params, sep="/")
    sources = {}
    for name in new:
        if not name.startswith("encoder/"):
            continue
        if name in old:
            sources[name] = name
        elif name.endswith(f"/attn/{_TABLE}") and _SHARED_TABLE in old:
            sources[name] = _SHARED_TABLE
    if not sources:
        raise ValueError(
            "nothing in the checkpoint matches the model's encoder. It holds "
            f"{', '.join(sorted(old)[:3])}, …; expected "
            f"{', '.join(sorted(new)[:3])}, …. "
            "Is config.model the encoder that config.init_from was trained with?"
        )
    misfits = [
        f"{name}: {np.shape(old[source])} in the checkpoint, {np.shape(new[name])} here"
        for name, source in sources.items()
        if np.shape(old[source]) != np.shape(new[name])
    ]
    if misfits:
        raise ValueError(
            "the checkpoint's encoder has other shapes; make config.model and "
            "config.data.image_size those that it was trained with:\n  "
            + "\n  ".join(misfits)
        )
    groups = dict.fromkeys(name.split("/")[1] for name in sources)
    fresh = [name for name in new if name not in sources]
    unused = [name for name in old if name not in sources.values()]
    report = "\n".join(
        [
            f"restored {len(sources)} of the encoder's parameters: {', '.join(groups)}",
            f"new: {', '.join(fresh) or 'nothing'}",
            f"left out: {', '.join(unused) or 'nothing'}",
        ]
    )
    merged = new | {name: old[source] for name, source in sources.items()}
    return unflatten_dict(merged, sep="/"), report
