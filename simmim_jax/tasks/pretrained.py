"""Parameters that a run takes from the checkpoint of config.init_from."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from simmim_jax.checkpoints import layout, store
from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.config import schema
from simmim_jax.config.schema import Downstream, Pretrain, RunConfig
from simmim_jax.errors import UserError
from simmim_jax.training.run import Learner


def record(config: RunConfig, learner: Learner) -> dict[str, str]:
    """Return what a run's record says of config.init_from: {"restored_from": path}.

    Reads the shapes of the checkpoint alone.
    raises: UserError if it does not fit, or if a frozen encoder has none.
    """
    if not config.init_from:
        if isinstance(config, Downstream) and config.freeze_encoder:
            raise UserError(
                "config.freeze_encoder=True with config.init_from='' would keep a "
                "random encoder: name a pre-training run."
            )
        return {}
    shapes, meta = store.load_shapes(config.init_from)
    params = jax.eval_shape(learner.init, jax.random.key(0))
    _transferred(config, without_memory(shapes), meta, without_memory(params))
    return {"restored_from": str(layout.find(config.init_from))}


def restore(config: RunConfig, params: Any) -> Any:
    """Return `params` with those of the checkpoint; print what became of each."""
    pretrained, meta = store.load(config.init_from)
    restored, report = _transferred(config, pretrained, meta, params)
    if jax.process_index() == 0:
        report += window_notice(meta["config"], schema.to_dict(config))
        print(f"from {config.init_from} (step {meta['step']}):\n{report}")
    return restored


def without_memory(shapes: Any) -> Any:
    """Return zeros of the shapes in a tree, which take no memory."""
    return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)


def patch_grid(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of an image [patches]."""
    height, width = config["data"]["image_size"]
    p, q = config["model"]["patch_size"]
    return height // p, width // q


def window_notice(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return a notice on a Swin V2 whose windows are not those of its pre-training.

    Its positions are relative to the edge of the window, unless
    model.pretrained_window_sizes says which edge is meant (official fine-tuning does).
    """
    learned, meant = (c["model"].get("pretrained_window_sizes", ()) for c in (old, new))
    if "pretrained_window_sizes" not in new["model"] or any(meant):
        return ""
    before, now = stage_windows(old), stage_windows(new)
    if any(learned):
        before = tuple(learned)
    if before == now:
        return ""
    return (
        f"\npositions: learned in windows of {before}, stretched to {now}; "
        f"config.model.pretrained_window_sizes={before} leaves distances as they were"
    )


def stage_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the window of each stage of a Swin, which is no larger than its grid."""
    grid, model = min(patch_grid(config)), config["model"]
    return tuple(
        min(model["window_size"], -(-grid // 2**stage))
        for stage in range(len(model["depths"]))
    )


def _transferred(
    config: RunConfig, pretrained: Any, meta: Mapping[str, Any], params: Any
) -> tuple[dict[str, Any], str]:
    return transfer(
        pretrained,
        params,
        source_grid=patch_grid(meta["config"]),
        target_grid=patch_grid(schema.to_dict(config)),
        first_blocks=config.init_first_blocks,
        adapt_channels=isinstance(config, Pretrain),
        bands=(meta["config"]["data"].get("bands", ()), config.data.bands),
    )
