"""Whether a run in a workdir is the same one, and what changed in its config."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simmim_jax.checkpoints.record import config_changes
from simmim_jax.config import schema
from simmim_jax.config.schema import Finetune, Pretrain
from simmim_jax.errors import UserError

# Fields that change what the parameters are, or what they have learned to predict.
_MODEL = ("decoder.", "loss.", "model.", "target.")


def changes_of(
    workdir: Path, config: Pretrain | Finetune, record: Mapping[str, Any]
) -> Callable[[bool], list[str]]:
    """Return `Run.changes`: how the config and the encoder differ from the first start.

    It raises UserError where the model or the kind of its state changed, or where the
    run is finished, so that other changes of what it learns would have no effect.
    """

    def changes(finished: bool) -> list[str]:
        begun = json.loads((workdir / "config.json").read_text())
        # A field that did not exist then had what is its default now.
        before = schema.to_dict(schema.parse(begun["config"], stored=True))
        changed = config_changes(
            before | {"encoder": begun.get("restored_from")},
            schema.to_dict(config) | {"encoder": record.get("restored_from")},
        )
        said = [f"{name} {change}" for name, change in changed.items()]
        learned = [name for name in changed if name not in schema.harmless(config)]
        other_state = any(name.startswith(_MODEL) for name in learned) or any(
            bool(before.get(name, False)) != bool(getattr(config, name, False))
            for name in ("ema_decay", "freeze_encoder")
        )
        if other_state or (finished and learned):
            raise UserError(
                f"'{workdir}' holds {'a finished' if finished else 'the'} run of "
                "another config. Choose another --workdir, or resume with its config:"
                "\n  " + "\n  ".join(said)
            )
        return said

    return changes
