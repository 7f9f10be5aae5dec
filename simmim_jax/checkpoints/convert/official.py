"""Names and layouts of the official PyTorch code and of our parameters.

Official: github.com/microsoft/SimMIM (vision_transformer.py, swin_transformer.py,
simmim.py) and, for Swin V2, github.com/microsoft/Swin-Transformer. Our parameters have
the official names, except for `_RENAMES`.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from simmim_jax.errors import UserError

# Ours -> official, applied in order to paths joined by "/".
_RENAMES = (
    (r"/qkv_kernel$", "/qkv/weight"),
    (r"/qkv_bias$", "/qkv/bias"),
    (r"\bpatch_embed/(?=kernel|bias)", "patch_embed/proj/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"\b(layers|blocks|cpb_mlp)_(\d+)", r"\1/\2"),
    (r"^decoder/", "decoder/0/"),
)
# Official buffers, which are computed from sizes.
_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")


def official_name(path: str, *, classifier: bool) -> str:
    """Return the official name of our parameter, such as encoder/blocks_0/norm1/scale.

    Only pre-training models keep the `encoder.` prefix.
    """
    if classifier:
        path = path.removeprefix("encoder/")
    for pattern, replacement in _RENAMES:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def official_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the official tensor for our parameter at `path`."""
    if path == "decoder/kernel":
        return (*shape[::-1], 1, 1)
    if path.endswith("kernel") and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1] if path.endswith("kernel") else shape


def to_official(params: Mapping) -> dict[str, np.ndarray]:
    """Return the official state dict of our parameters, without its buffers.

    Kernels become weights: linear [in, out] -> [out, in], convolution HWIO -> OIHW, and
    the decoder's becomes that of a 1x1 convolution.
    """
    flat = flatten_dict(params, sep="/")
    classifier = "decoder/kernel" not in flat
    state = {}
    for path, leaf in flat.items():
        value = np.asarray(leaf)
        if path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if path == "decoder/kernel":
            value = value[:, :, None, None]
        name = official_name(path, classifier=classifier)
        state[name] = np.ascontiguousarray(value)
    return state


def from_official(state: Mapping[str, np.ndarray], like: Mapping) -> dict:
    """Return an official state dict as parameters in the structure of `like`.

    The exact inverse of `to_official`. Raises UserError that lists every tensor which
    is missing, unknown to the model, or of another shape.

    like: parameters of our model, or their shapes (`jax.eval_shape`).
    """
    flat = flatten_dict(like, sep="/")
    classifier = "decoder/kernel" not in flat
    params, problems, used = {}, [], set()
    for path, leaf in flat.items():
        name = official_name(path, classifier=classifier)
        used.add(name)
        if name not in state:
            problems.append(f"{name} is missing")
            continue
        value, expected = np.asarray(state[name]), official_shape(path, leaf.shape)
        if value.shape != expected:
            problems.append(f"{name} has shape {value.shape}, expected {expected}")
            continue
        if value.dtype.kind != "f":
            problems.append(f"{name} has dtype {value.dtype}, expected a float")
            continue
        if path == "decoder/kernel":
            value = value[:, :, 0, 0]
        if path.endswith("kernel"):
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        params[path] = value
    problems += [
        f"{name} is not in the model"
        for name in state
        if name not in used and name.rsplit(".", 1)[-1] not in _BUFFERS
    ]
    if problems:
        raise UserError(
            "the checkpoint does not fit the model. Correct sizes and positions with "
            "--model.FIELD=VALUE and --data.image_size='(height, width)', or leave "
            "tensors out with --leave_out=PATTERN:\n  " + "\n  ".join(problems)
        )
    return unflatten_dict(params, sep="/")
