"""Time of a SimMIM pre-training step on a CPU: this package and PyTorch.

    git clone https://github.com/microsoft/SimMIM
    python -m benchmarks.step_time --official=SimMIM --torch=PYTHON

ViT-B/16 at 224 pixels and Swin-B at 192, the same batch size, with gradient clipping
and AdamW: in float32, and with bfloat16 products (config.dtype="bfloat16_products"
beside torch.autocast). This package's step also flips, normalises and draws the masks.
The official code's model, optimiser and settings are used unchanged; without --official
the peer is transformers' masked-image models of the same sizes. PYTHON has torch, timm
and yacs, or torch and transformers. Each implementation is a process that uses all
CPUs; they take turns, and ratios are medians over turns. Memory is a process's peak.
"""

import argparse
import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODELS = ("vit_base", "swin_base")
SIZES = {"vit_base": 224, "swin_base": 192}
# Peak learning rate and weight decay of both recipes.
LR, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.05, 5.0

# ---- Steps: (model, batch size) -> a function that runs one step ---------------------


def ours(model: str, batch: int, dtype: str) -> Callable[[], float]:
    """Return the step of configs/<model>.py."""
    import jax

    from simmim_jax.config import schema
    from simmim_jax.runtime import host_memory, sharding
    from simmim_jax.tasks import learners
    from simmim_jax.training import compilation

    config = importlib.import_module(f"simmim_jax.configs.{model}").get_config()
    config.dtype = dtype
    config.data.batch_size = batch
    mesh = sharding.make_mesh()
    learner = learners.learner(schema.parse(config))
    plan = compilation.plan(learner, mesh)
    compiled = plan.lower().compile()
    params = jax.jit(learner.init)(jax.random.key(0))
    state = jax.jit(plan.fresh_state, donate_argnums=0)(params)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, plan.batch["image"].shape, np.uint8)
    labels = np.zeros(batch, np.int32)
    data = sharding.to_devices({"image": images, "label": labels}, mesh)
    host_memory.make_room()  # this and await_on_cpus: as in the training loop

    def step() -> float:
        nonlocal state
        sharding.await_on_cpus((state, data))
        state, metrics = compiled(state, data)
        return float(metrics["loss"])

    return step


def official(model: str, batch: int, code: Path) -> Callable[[], float]:
    """Return a step of the official model and optimiser, as in main_simmim.py."""
    sys.path.insert(0, str(code))
    from config import get_config
    from models import build_model
    from optimizer import build_optimizer

    (cfg,) = code.glob(f"configs/{model}*/simmim_pretrain__{model}__*__800ep.yaml")
    args = argparse.Namespace(cfg=str(cfg), opts=None, local_rank=0)
    config = get_config(args)
    net = build_model(config, is_pretrain=True)
    log = argparse.Namespace(info=lambda text: None)
    optimizer = build_optimizer(config, net, log, is_pretrain=True)
    images, mask = torch_batch(batch, SIZES[model], net.patch_size)
    return torch_step(net, optimizer, lambda: net(images, mask))


def transformers(model: str, batch: int) -> Callable[[], float]:
    """Return a step of transformers; its ViT has no relative position bias."""
    import torch
    from transformers import (
        SwinConfig,
        SwinForMaskedImageModeling,
        ViTConfig,
        ViTForMaskedImageModeling,
    )

    if model == "vit_base":
        net = ViTForMaskedImageModeling(ViTConfig(encoder_stride=16))
    else:
        net = SwinForMaskedImageModeling(
            SwinConfig(
                image_size=192,
                embed_dim=128,
                depths=[2, 2, 18, 2],
                num_heads=[4, 8, 16, 32],
                window_size=6,
                encoder_stride=32,
            )
        )
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=WEIGHT_DECAY)
    images, mask = torch_batch(batch, SIZES[model], net.config.patch_size)
    mask = mask.flatten(1).bool()
    return torch_step(net, optimizer, lambda: net(images, mask).loss)


def torch_batch(batch: int, size: int, patch: int) -> tuple:
    """Return normalised images, and masks of 60 % of their 32-pixel units."""
    import torch

    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(batch, 3, size, size)).astype("f"))
    unit = 32 // patch
    mask = rng.random((batch, size // 32, size // 32)) < 0.6
    return images, torch.from_numpy(mask.repeat(unit, 1).repeat(unit, 2).astype(int))


def torch_step(net, optimizer, loss_of: Callable) -> Callable[[], float]:
    """Return a step that reads the loss, as the official loop does."""
    import torch

    net.train()

    def step() -> float:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def work(name: str, model: str, batch: int, code: Path) -> None:
    """Run one implementation, with or without bfloat16, in this process."""
    peer, _, bf16 = name.partition("_")
    if peer == "ours":
        from simmim_jax.runtime import host_memory

        dtype = "bfloat16_products" if bf16 else "float32"
        with host_memory.kept():
            take_turns(name, batch, ours(model, batch, dtype))
        return
    import torch

    step = official(model, batch, code) if code else transformers(model, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
        take_turns(name, batch, step)


def take_turns(name: str, batch: int, step: Callable[[], float]) -> None:
    """Run a step for each line on stdin, and answer with a line of JSON."""
    step()  # warm-up
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        if not math.isfinite(loss):
            sys.exit(f"{name}: loss {loss}")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([batch / seconds, memory]), flush=True)


# ---- Turns ---------------------------------------------------------------------------


class Implementation:
    """The process of one implementation."""

    def __init__(self, command: list[str], name: str, model: str):
        self.name = name
        self.process = subprocess.Popen(
            [*command, "--work", name, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        while self._read() != "ready":
            pass

    def _read(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed: see the error above.")
        try:
            return json.loads(line)
        except ValueError:  # output of a library
            return None

    def turn(self) -> tuple[float, int]:
        """Run a step; return images/s and peak memory [bytes]."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._read()  # type: ignore[return-value]

    def close(self) -> None:
        """End the process."""
        self.process.communicate("")


def measure(model: str, peer: str, args: argparse.Namespace) -> dict[str, list]:
    """Return rates [images/s] of each turn, and last the peak memory [GB]."""
    options = [f"--batch={args.batch}"]
    if args.official:
        options.append(f"--official={args.official.absolute()}")
    all_of_them = [
        Implementation([python, __file__, *options], name, model)
        for name, python in [
            ("ours", sys.executable),
            ("ours_bf16", sys.executable),
            (peer, args.torch),
            (f"{peer}_bf16", args.torch),
        ]
    ]
    turns = [[one.turn() for one in all_of_them] for _ in range(args.turns)]
    results = {}
    for one, column in zip(all_of_them, zip(*turns, strict=True), strict=True):
        one.close()
        results[one.name] = [*(rate for rate, _ in column), column[-1][1] / 1e9]
    return results


def ratios(a: list[float], b: list[float]) -> tuple[float, float]:
    """Return the median of a's rates over b's, and the ratio of memory."""
    *rates, memory = (x / y for x, y in zip(a, b, strict=True))
    return round(statistics.median(rates), 2), round(memory, 2)


def main() -> None:
    """Print a table of both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, metavar="FOLDER")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        name, model = args.work
        work(name, model, args.batch, args.official)
        return

    peer = "official" if args.official else "transformers"
    print(
        "| model, type | ours, images/s | theirs | ours over it | memory, GB | theirs |"
    )
    print("|---|---|---|---|---|---|")
    results: dict[str, object] = {"peer": peer}
    for model in args.models:
        measured = measure(model, peer, args)
        for kind in ("", "_bf16"):
            mine, theirs = measured[f"ours{kind}"], measured[f"{peer}{kind}"]
            ratio, memory = ratios(mine, theirs)
            results[f"{model}{kind}"], results[f"{model}{kind}_memory"] = ratio, memory
            print(
                f"| {model}{kind} | {statistics.median(mine[:-1]):.2f} | "
                f"{statistics.median(theirs[:-1]):.2f} | {ratio:.2f} | "
                f"{mine[-1]:.2f} | {theirs[-1]:.2f} |",
                flush=True,
            )
        name = f"{model}_bf16_over_float32"
        results[name], results[f"{name}_memory"] = ratios(
            measured["ours_bf16"], measured["ours"]
        )
        print(f"{name}: {results[name]}, memory {results[f'{name}_memory']}")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
