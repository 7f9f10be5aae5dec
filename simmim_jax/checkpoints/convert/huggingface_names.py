"""Names and layouts of transformers' Swin, Swin V2, ViT and BEiT.

transformers has separate tensors for queries, keys and values. Its classes for a task
prefix the encoder with the model type, such as `swin.`.
"""

import re
from collections.abc import Mapping

import numpy as np

from simmim_jax.checkpoints.convert.files import rename

# Official names -> names of transformers, outside of blocks.
_STEM = {
    "mask_token": "embeddings.mask_token",
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "rel_pos_bias": "encoder.relative_position_bias",
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
    "head": "classifier",
}
# The same within a block.
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}
# The same within a block's attention.
_ATTENTION = {
    "attn.q": "query",
    "attn.k": "key",
    "attn.v": "value",
    "attn.logit_scale": "logit_scale",
    "attn.cpb_mlp": "continuous_position_bias_mlp",
}
TABLE = "relative_position_bias_table"
# Parameters in blocks: names of transformers and official ones.
_PATH = re.compile(r"encoder\.((?:layers\.\d+\.blocks|layer)\.\d+)\.(.+)")
_OFFICIAL_PATH = re.compile(r"((?:layers\.\d+\.)?blocks\.\d+)\.(.+)")


def to_official(state: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Return `state` in official names and layouts; unknown names are kept.

    Biases of a ViT's keys become `attn.k_bias`, which official models lack.

    kind: `model_type` of transformers.
    """
    stem, block = _tables(kind)
    stem = {theirs: ours for ours, theirs in stem.items()}
    block = {theirs: ours for ours, theirs in block.items()}

    def official_name(name: str) -> str:
        name = name.removeprefix(f"{kind}.")
        if found := _PATH.fullmatch(name):
            prefix = found[1].replace("layer.", "blocks.")
            return f"{prefix}.{_replace_prefix(found[2], block)}"
        if re.match(r"encoder\.layers\.\d+\.downsample\.", name):
            return name.removeprefix("encoder.")
        return _replace_prefix(name, stem)

    official = _join_attention(rename(state, official_name), join_biases=kind == "swin")
    if not any(name.startswith("decoder.") for name in official):
        return official
    return {
        name if name.startswith("decoder.") else f"encoder.{name}": value
        for name, value in official.items()
    }


def from_official(
    state: Mapping[str, np.ndarray], kind: str, prefix: str
) -> dict[str, np.ndarray]:
    """Return official tensors, without `encoder.`, in names of transformers.

    Biases that transformers requires and the model lacks become zeros.

    kind: `model_type` of transformers. prefix: name of the encoder in its class, "" for
    a class that is the encoder.
    """
    stem, block = _tables(kind)

    def their_name(name: str) -> str:
        if found := _OFFICIAL_PATH.fullmatch(name):
            path = re.sub("^blocks", "layer", found[1])
            name = f"encoder.{path}.{_replace_prefix(found[2], block)}"
        elif name.startswith("layers."):
            name = f"encoder.{name}"
        else:
            name = _replace_prefix(name, stem)
        bare = not prefix or name.startswith(("decoder.", "classifier."))
        return name if bare else f"{prefix}.{name}"

    return rename(_split_attention(state, kind), their_name)


def _tables(kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """Official names -> names of transformers, outside of blocks and within."""
    swin = kind in ("swin", "swinv2")
    part = "self" if swin else "attention"
    attention = _ATTENTION | {
        f"attn.{TABLE}": TABLE if swin else f"relative_position_bias.{TABLE}"
    }
    positions = "absolute_pos_embed" if swin else "pos_embed"
    return (
        _STEM | {positions: "embeddings.position_embeddings"},
        _BLOCK | {k: f"attention.{part}.{v}" for k, v in attention.items()},
    )


def _replace_prefix(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _join_attention(
    state: Mapping[str, np.ndarray], *, join_biases: bool
) -> dict[str, np.ndarray]:
    """Concatenate attn.{q,k,v}.weight to attn.qkv.weight.

    join_biases: also concatenate biases, to attn.qkv.bias; otherwise rename them to
    attn.{q,k,v}_bias.
    """
    joined = dict(state)
    for name in state:
        if not name.endswith("attn.q.weight"):
            continue
        attn = name.removesuffix("q.weight")
        for part in ("weight", "bias") if join_biases else ("weight",):
            names = [f"{attn}{which}.{part}" for which in "qkv"]
            # Incomplete sets are kept, so that the list of misfits shows them.
            if (
                state.keys() >= set(names)
                and len({state[n].shape[1:] for n in names}) == 1
            ):
                joined[f"{attn}qkv.{part}"] = np.concatenate(
                    [joined.pop(n) for n in names]
                )
        for which in "qkv":
            if not join_biases and f"{attn}{which}.bias" in joined:
                joined[f"{attn}{which}_bias"] = joined.pop(f"{attn}{which}.bias")
    return joined


def _split_attention(
    state: Mapping[str, np.ndarray], kind: str
) -> dict[str, np.ndarray]:
    """Invert `_join_attention`, with zeros for biases that transformers requires."""
    split: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if found := re.fullmatch(r"(.+attn\.)qkv\.(weight|bias)", name):
            parts = np.split(value, 3)
            split |= {
                f"{found[1]}{w}.{found[2]}": part
                for w, part in zip("qkv", parts, strict=True)
            }
        elif found := re.fullmatch(r"(.+attn\.)([qv])_bias", name):
            split[f"{found[1]}{found[2]}.bias"] = value
        else:
            split[name] = value
    for name, value in list(split.items()):
        if not name.endswith("attn.q.weight"):
            continue
        attn, zeros = name.removesuffix("q.weight"), np.zeros(len(value), np.float32)
        if kind == "vit" and f"{attn}q.bias" in split:
            split[f"{attn}k.bias"] = zeros
        if kind == "beit":
            for which in "qv":
                split.setdefault(f"{attn}{which}.bias", zeros)
    return split
