"""Images a second through an encoder on a CPU: this package beside timm.

    python3 -m venv others
    others/bin/pip install torch torchvision timm
    python -m benchmarks.forward --torch=others/bin/python

ViT-B/16 and Swin-B at 224 pixels, whole images without masks or gradients, in float32
and with bfloat16 products (config.dtype="bfloat16_products" beside torch.autocast).
Weights are random, batches are prepared. Each is a process that uses all CPUs; they
take turns, and ratios are medians over turns.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.step_time import Implementation, take_turns

SIZE = 224
PEERS = {
    "vit_base": "vit_base_patch16_224",
    "swin_base": "swin_base_patch4_window7_224",
}
# Fields of our models that are others in timm's.
AS_TIMM = {
    "vit_base": {
        "use_abs_pos_emb": True,
        "use_shared_rel_pos_bias": False,
        "layer_scale": 0.0,
    },
    "swin_base": {"window_size": 7},
}


def ours(model: str, batch: int, dtype: str) -> Callable[[], float]:
    """Return a forward pass of the encoder, as embedding runs it."""
    import jax

    from simmim_jax.config import schema
    from simmim_jax.configs import models
    from simmim_jax.models import build_simmim, plain

    fields = models.pretraining(model, **AS_TIMM[model]).to_dict()
    typed = schema.ENCODERS[fields["name"]](**fields)
    encoder = plain(build_simmim(dtype=dtype, **schema.encoder_fields(typed))).encoder
    images = pixels(batch)
    params = jax.jit(encoder.init)(jax.random.key(0), images)

    @jax.jit
    def apply(params, images):
        return encoder.apply(params, images).grid.mean((1, 2))

    return lambda: float(np.asarray(apply(params, images)).sum())


def timm_model(model: str, batch: int) -> Callable[[], float]:
    """Return a forward pass of the same encoder of timm."""
    import timm
    import torch

    net = timm.create_model(PEERS[model], num_classes=0).eval()
    images = torch.from_numpy(pixels(batch)).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def apply() -> float:
        return net(images).float().sum().item()

    return apply


def pixels(batch: int) -> np.ndarray:
    """Return normalised images."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, SIZE, SIZE, 3)).astype(np.float32)


def work(name: str, model: str, batch: int) -> None:
    """Run one implementation, with or without bfloat16, in this process."""
    peer, _, bf16 = name.partition("_")
    if peer == "ours":
        dtype = "bfloat16_products" if bf16 else "float32"
        take_turns(name, batch, ours(model, batch, dtype))
        return
    import torch

    with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
        take_turns(name, batch, timm_model(model, batch))


def main() -> None:
    """Print a table of both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", default=[*PEERS], choices=PEERS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(*args.work, args.batch)

    print("| model, type | ours, images/s | timm | ours over it |")
    print("|---|---|---|---|")
    results = {}
    for model in args.models:
        processes = {
            name: Implementation(
                [python, __file__, f"--batch={args.batch}"], name, model
            )
            for name, python in [
                ("ours", sys.executable),
                ("ours_bf16", sys.executable),
                ("timm", args.torch),
                ("timm_bf16", args.torch),
            ]
        }
        rates: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(args.turns):
            for name, process in processes.items():
                rates[name].append(process.turn()[0])
        for process in processes.values():
            process.close()
        for kind in ("", "_bf16"):
            mine, theirs = rates[f"ours{kind}"], rates[f"timm{kind}"]
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            results[f"{model}{kind}"] = round(ratio, 2)
            print(
                f"| {model}{kind} | {statistics.median(mine):.2f} | "
                f"{statistics.median(theirs):.2f} | {ratio:.2f} |",
                flush=True,
            )
    if args.json:
        print(json.dumps(results))
    return None


if __name__ == "__main__":
    main()
