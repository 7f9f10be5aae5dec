"""Models, weights, images and masks of the golden cases (tests/golden)."""

import json
import math
import os
from pathlib import Path

import jax
import numpy as np

from simmim_jax.checkpoints.convert.official import from_official, to_official
from simmim_jax.models.classifier import Classifier
from simmim_jax.models.simmim import SimMIM
from simmim_jax.models.swin import Swin
from simmim_jax.models.swin_v2 import SwinV2
from simmim_jax.models.vit import ViT

IMAGE_KEY = 1000003


def files(prefix: str) -> list[Path]:
    """Return tests/golden/<prefix>*.json and those in $SIMMIM_GOLDEN_DIR."""
    folders = [Path(__file__).parent / "golden"]
    if "SIMMIM_GOLDEN_DIR" in os.environ:
        folders.append(Path(os.environ["SIMMIM_GOLDEN_DIR"]))
    return [file for f in folders for file in sorted(f.glob(f"{prefix}*.json"))]


def load(prefix: str) -> dict[str, dict]:
    """Return all cases of `files(prefix)` by name."""
    cases = {}
    for file in files(prefix):
        content = json.loads(file.read_text())
        shared = {k: v for k, v in content.items() if not isinstance(v, dict)}
        for name, case in content.items():
            if isinstance(case, dict) and "arch" in case:
                cases[f"{file.parent.name}-{file.stem}-{name}"] = shared | case
    return cases


def hash_values(size: int, k: int) -> np.ndarray:
    """Return u(size, k) in [-1, 1], float64: the hash behind the golden numbers."""
    with np.errstate(over="ignore"):
        x = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
        x += np.uint32((k * 2246822519 + 374761393) % 2**32)
        x ^= x >> 15
        x *= np.uint32(2246822519)
        x ^= x >> 13
        x *= np.uint32(3266489917)
        x ^= x >> 16
    return x / 2**31 - 1


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the golden weights for official names and shapes."""
    state = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        v = hash_values(math.prod(shape), k).reshape(shape)
        last = name.rsplit(".", 1)[-1]
        if "norm" in name and last == "weight":
            v = 1 + 0.2 * v
        elif name.endswith("logit_scale"):
            v = math.log(10) + 0.5 * v
        elif "gamma_" in name:
            v = 0.5 + 0.25 * v
        elif "relative_position_bias_table" in name:
            v = 0.5 * v
        elif last == "weight" or "token" in name or "pos_embed" in name:
            token = "token" in name or "pos_embed" in name or len(shape) == 1
            v = v * math.sqrt(3 / (3 if token else math.prod(shape[1:])))
        else:
            v = 0.1 * v
        state[name] = v.astype(np.float32)
    return state


def images(case: dict, step: int = 0) -> np.ndarray:
    """Return the images of one batch, float32 [b h w c]."""
    arch, batch = case["arch"], case["batch"]
    height, width = np.broadcast_to(arch["img_size"], 2)
    shape = (batch, arch["in_chans"], height, width)
    n = math.prod(shape)
    flat = np.sin(0.013 * np.arange(n) + step) + 0.5 * hash_values(n, IMAGE_KEY + step)
    return flat.reshape(shape).transpose(0, 2, 3, 1).astype(np.float32)


def masks(case: dict, step: int = 0) -> np.ndarray:
    """Return the masks of one batch on the patch grid, bool [b gh gw]."""
    units, scale = case["mask_units"], case["mask_scale"]
    b, j = np.ogrid[: case["batch"], : units**2]
    mask = ((7 * j + 3 * b + step) % 5 < 3).reshape(-1, units, units)
    return mask.repeat(scale, 1).repeat(scale, 2)


def build(arch: dict) -> SimMIM | Classifier:
    """Return the model of `arch`, whose names are the official arguments."""
    fields = {
        "patch_size": (arch["patch_size"],) * 2,
        "embed_dim": arch["embed_dim"],
        "mlp_ratio": arch["mlp_ratio"],
        "qkv_bias": arch["qkv_bias"],
        "drop_path_rate": arch["drop_path_rate"],
    }
    if arch["type"] == "vit":
        return build_vit(arch, fields)
    fields |= {
        "depths": tuple(arch["depths"]),
        "num_heads": tuple(arch["num_heads"]),
        "window_size": arch["window_size"],
        "patch_norm": arch.get("patch_norm", True),
        "use_abs_pos_emb": arch.get("ape", False),
    }
    if arch["type"] == "swin":
        encoder = Swin(**fields)
    else:
        windows = tuple(arch.get("pretrained_window_sizes", ()))
        encoder = SwinV2(**fields, pretrained_window_sizes=windows)
    if "num_classes" in arch:
        return Classifier(encoder, arch["num_classes"], pool_norm=False)
    return SimMIM(encoder)


def build_vit(arch: dict, fields: dict) -> SimMIM | Classifier:
    mean = arch["use_mean_pooling"]
    encoder = ViT(
        **fields,
        depth=arch["depth"],
        num_heads=arch["num_heads"],
        use_abs_pos_emb=arch["use_abs_pos_emb"],
        use_rel_pos_bias=arch["use_rel_pos_bias"],
        use_shared_rel_pos_bias=arch["use_shared_rel_pos_bias"],
        layer_scale=arch["init_values"] or 0.0,
        final_norm=not mean,
        norm_eps=arch["norm_eps"],
    )
    if "num_classes" in arch:
        return Classifier(encoder, arch["num_classes"], "mean" if mean else "cls", mean)
    return SimMIM(encoder)


def golden_params(model: SimMIM | Classifier, case: dict) -> dict:
    """Return the parameters of a model with the golden weights."""
    inputs = [images(case)] + [masks(case)] * isinstance(model, SimMIM)
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    zeros = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), like)
    shapes = {name: value.shape for name, value in to_official(zeros).items()}
    return from_official(weights(shapes), like)
