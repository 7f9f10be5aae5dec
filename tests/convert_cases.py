"""Small models with random weights, and their outputs, for converter tests."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from simmim_jax.augment.normalization import Normalization
from simmim_jax.checkpoints import store
from simmim_jax.checkpoints.convert.model import param_shapes
from simmim_jax.checkpoints.convert.overrides import OFFICIAL_DATA
from simmim_jax.cli.convert import main
from simmim_jax.config import schema
from simmim_jax.data.sources.base import NO_LABEL
from simmim_jax.mim import losses, masking
from simmim_jax.models import build_classifier, build_encoder, build_simmim
from simmim_jax.tasks.views import eval_view

SIZE, PATCH, CLASSES = 32, 4, ("ant", "bee", "cat", "dog", "eel")
GRID = SIZE // PATCH
DATA = {
    "image_size": (SIZE, SIZE),
    "channels": 3,
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.25, 0.3),
    "interpolation": "bilinear",
    "eval_crop": 0.875,
}
VIT = {
    "name": "vit",
    "patch_size": (PATCH, PATCH),
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "use_abs_pos_emb": False,
    "use_rel_pos_bias": False,
    "use_shared_rel_pos_bias": True,
    "layer_scale": 0.1,
    "drop_path_rate": 0.1,
    "final_norm": True,
    "norm_eps": 1e-6,
    "init_std": 0.02,
    "init_cut": 1.0,
    "remat": "none",
    "scan_layers": False,
}
PLAIN_VIT = VIT | {
    "use_abs_pos_emb": True,
    "use_shared_rel_pos_bias": False,
    "layer_scale": 0.0,
    "drop_path_rate": 0.0,
}
SWIN = {
    "name": "swin",
    "patch_size": (PATCH, PATCH),
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "patch_norm": True,
    "use_abs_pos_emb": False,
    "drop_path_rate": 0.1,
    "norm_eps": 1e-5,
    "init_std": 0.02,
    "remat": "none",
    "scan_layers": False,
}
# The second stage's grid is smaller than a window.
SWIN_V2 = SWIN | {
    "name": "swin_v2",
    "depths": (2, 2, 1),
    "num_heads": (2, 4, 4),
    "pretrained_window_sizes": (6, 6, 3),
}
MEAN_HEAD = {"pool": "mean", "pool_norm": True, "head_scale": 0.001}
CLS_HEAD = {"pool": "cls", "pool_norm": False, "head_scale": 0.001}
SWIN_HEAD = {"pool": "mean", "pool_norm": False, "head_scale": 1.0}
# The official classifier: one table per block, no norm before the pooling.
VIT_CLASSIFIER = (
    VIT
    | {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "final_norm": False}
    | MEAN_HEAD
)


def images(size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """[2, height, width, 3] float32."""
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)


def mask(grid: tuple[int, int] = (GRID, GRID)) -> np.ndarray:
    """[2, height, width] bool."""
    return np.random.default_rng(2).random((2, *grid)) < 0.6


def random_like(shapes):
    """Weights with which every part of a model affects the output."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes
    )


def make(path: Path, model: dict, *, encoder_only: bool = False, **data) -> dict:
    """Write a checkpoint of ours with random weights, and return the weights."""
    classes = CLASSES if "pool" in model else ()
    data = DATA | data
    height, width = data["image_size"]
    module = build(model, len(classes), encoder_only)
    inputs = [jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)]
    if not classes:
        p, q = model["patch_size"]
        grid = jax.ShapeDtypeStruct((1, height // p, width // q), jnp.bool_)
        inputs.append(grid)
    shapes = param_shapes(module, *inputs)
    params = random_like({"encoder": shapes} if encoder_only else shapes)
    config = {"dtype": "float32", "model": model, "data": data}
    config["mode"] = "finetune" if classes else "pretrain"
    meta = {"config": config, "step": 3}
    store.write(path, params, meta | ({"class_names": classes} if classes else {}))
    return params


def build(model: dict, num_classes: int, encoder_only: bool):
    """Module of a checkpoint."""
    if num_classes:
        return build_classifier(num_classes=num_classes, dtype="float32", **model)
    if encoder_only:
        return build_encoder(**model, dtype=jnp.float32)
    return build_simmim(dtype="float32", **model)


def run(path: Path, images: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Output of a checkpoint of ours: logits, pixels, or patch features."""
    params, meta = store.load(path)
    model, classes = meta["config"]["model"], meta.get("class_names", ())
    encoder_only = not classes and "decoder" not in params
    module = build(model, len(classes), encoder_only)
    params = params["encoder"] if encoder_only else params
    inputs = [images] if mask is None else [images, mask]
    out = jax.jit(module.apply)({"params": params}, *inputs)
    return np.asarray(out.grid if encoder_only else out)


def masked_loss(pixels: np.ndarray, images: np.ndarray, mask: np.ndarray) -> float:
    """Pre-training loss of a prediction."""
    mask = masking.upsample(mask, *images.shape[1:3])
    return float(losses.masked_l1(pixels, images, mask)[0])


def convert(source: Path, target: Path, *flags: str) -> Path:
    """Run the command in this process, and return the target."""
    main([str(source), str(target), *flags])
    return target


def picture(size: tuple[int, int] = (61, 47), seed: int = 0) -> Image.Image:
    """A photograph of this height and width: noise on a gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 128, size[0])[:, None, None]
    pixels = ramp + rng.integers(0, 128, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def prepared(image: Image.Image, **data) -> np.ndarray:
    """What a model with these fields of config.data sees of an image: [h w c]."""
    data = schema.FinetuneData(**OFFICIAL_DATA | {"dtype": "uint8"} | data)
    example = {"image": np.asarray(image), "label": NO_LABEL}
    pixels = eval_view(data)(example, np.random.default_rng(0))["image"]
    return np.asarray(Normalization(data.mean, data.std)(pixels))
