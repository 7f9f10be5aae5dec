"""Names and layouts of transformers' Swin, Swin V2, ViT and BEiT, and official ones.

transformers keeps queries, keys and values apart. Its classes for a task put the
encoder under the name of the model type, such as `swin.`.
"""

import re
from collections.abc import Mapping

import numpy as np

from simmim_jax.checkpoints.convert.files import renamed

# Official names -> those of transformers, outside of blocks.
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
# The same within a block's attention, whose queries, keys and values we keep together.
_ATTENTION = {
    "attn.q": "query",
    "attn.k": "key",
    "attn.v": "value",
    "attn.logit_scale": "logit_scale",
    "attn.cpb_mlp": "continuous_position_bias_mlp",
}
TABLE = "relative_position_bias_table"
# Their names for the paths of blocks and mergings -> official ones.
_PATH = re.compile(r"encoder\.((?:layers\.\d+\.blocks|layer)\.\d+)\.(.+)")
_OFFICIAL_PATH = re.compile(r"((?:layers\.\d+\.)?blocks\.\d+)\.(.+)")


def to_official(state: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Names and layouts of transformers -> official ones; unknown names stay.

    kind: their `model_type`. Biases of a ViT's keys are `attn.k_bias`, which no
    official model has.
    """
    stem, block = _tables(kind)
    stem = {theirs: ours for ours, theirs in stem.items()}
    block = {theirs: ours for ours, theirs in block.items()}

    def official_name(name: str) -> str:
        name = name.removeprefix(f"{kind}.")
        if found := _PATH.fullmatch(name):
            place = found[1].replace("layer.", "blocks.")
            return f"{place}.{_replace_start(found[2], block)}"
        if re.match(r"encoder\.layers\.\d+\.downsample\.", name):
            return name.removeprefix("encoder.")
        return _replace_start(name, stem)

    official = _join_attention(
        renamed(state, official_name), biases="joined" if kind == "swin" else "single"
    )
    if not any(name.startswith("decoder.") for name in official):
        return official
    return {
        name if name.startswith("decoder.") else f"encoder.{name}": value
        for name, value in official.items()
    }


def from_official(
    state: Mapping[str, np.ndarray], kind: str, prefix: str
) -> dict[str, np.ndarray]:
    """Official names without `encoder.` -> those of transformers.

    kind: their `model_type`; prefix: what the class calls its encoder, "" for the
    encoder itself. Biases that they need and the model has not, become zeros.
    """
    stem, block = _tables(kind)

    def their_name(name: str) -> str:
        if found := _OFFICIAL_PATH.fullmatch(name):
            place = re.sub("^blocks", "layer", found[1])
            name = f"encoder.{place}.{_replace_start(found[2], block)}"
        elif name.startswith("layers."):
            name = f"encoder.{name}"
        else:
            name = _replace_start(name, stem)
        bare = not prefix or name.startswith(("decoder.", "classifier."))
        return name if bare else f"{prefix}.{name}"

    return renamed(_split_attention(state, kind), their_name)


def _tables(kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """Official names -> those of transformers, outside of blocks and within."""
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


def _replace_start(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _join_attention(
    state: Mapping[str, np.ndarray], *, biases: str
) -> dict[str, np.ndarray]:
    """attn.{q,k,v}.{weight,bias} -> attn.qkv.weight and biases.

    biases: "joined" as attn.qkv.bias, or "single" as attn.{q,k,v}_bias.
    """
    joined = dict(state)
    for name in state:
        if not name.endswith("attn.q.weight"):
            continue
        attn = name.removesuffix("q.weight")
        for part in ("weight", "bias") if biases == "joined" else ("weight",):
            names = [f"{attn}{which}.{part}" for which in "qkv"]
            # Others stay apart, to be named where what does not fit is listed.
            if (
                state.keys() >= set(names)
                and len({state[n].shape[1:] for n in names}) == 1
            ):
                joined[f"{attn}qkv.{part}"] = np.concatenate(
                    [joined.pop(n) for n in names]
                )
        for which in "qkv":
            if biases == "single" and f"{attn}{which}.bias" in joined:
                joined[f"{attn}{which}_bias"] = joined.pop(f"{attn}{which}.bias")
    return joined


def _split_attention(
    state: Mapping[str, np.ndarray], kind: str
) -> dict[str, np.ndarray]:
    """The inverse, with zeros for biases that a model of transformers must have."""
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
