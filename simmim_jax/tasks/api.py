"""What `import simmim_jax` offers: train from Python, and use what was trained."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simmim_jax.config import schema
from simmim_jax.config.schema import Compare, Config, Finetune, Pretrain
from simmim_jax.data.sources import base
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.errors import UserError
from simmim_jax.tasks import architecture, classify
from simmim_jax.tasks import compare as comparison
from simmim_jax.tasks import pretrain as pretraining
from simmim_jax.tasks.predict import Predictor
from simmim_jax.training import loop
from simmim_jax.training.run import Trained

# One of this many examples is held out where no held-out data are given.
_HELD_OUT = 20


def pretrain(
    config: ConfigDict | Pretrain,
    workdir: str | Path,
    *,
    data: Any = None,
    held_out: Any = None,
) -> Trained:
    """Pre-train as a config says, or resume the run in `workdir`.

    config: such as simmim_jax.configs.small.get_config(). data: images in place of the
    config's data set: an array [n h w c], any Grain random-access source or sequence of
    examples (see `as_source`). held_out: likewise; without it every 20th example of
    `data` is held out.
    raises: UserError where the config makes no sense.
    """
    parsed = _parse(config, Pretrain)
    sources = _sources(data, held_out)
    return loop.train(pretraining.build(parsed, _folder(workdir), **sources))


def finetune(
    config: ConfigDict | Finetune,
    workdir: str | Path,
    *,
    data: Any = None,
    held_out: Any = None,
) -> Trained:
    """Fine-tune as a config says, or resume the run in `workdir`; see `pretrain`.

    data, held_out: with labels; a pair (images, labels) will do.
    """
    parsed, said = architecture.adopt(_parse(config, Finetune))
    for line in said:
        print(line)
    sources = _sources(data, held_out)
    return loop.train(classify.build(parsed, _folder(workdir), **sources))


def compare(config: ConfigDict | Compare, workdir: str | Path) -> dict[str, Any]:
    """Pre-train, then fine-tune with and without it; see `tasks.compare.compare`."""
    return comparison.compare(_parse(config, Compare), _folder(workdir))


def load(path: str | Path) -> Predictor:
    """Load a fine-tuned classifier: the workdir of its run, or a checkpoint."""
    return Predictor.load(path)


def _parse(config: ConfigDict | Config, kind: type) -> Any:
    parsed = schema.parse(config) if isinstance(config, ConfigDict) else config
    if not isinstance(parsed, kind):
        raise UserError(
            f"config.mode={parsed.mode!r}: expected a config of {kind.__name__}."
        )
    return parsed


def _folder(workdir: str | Path) -> Path:
    path = Path(workdir).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _sources(data: Any, held_out: Any) -> dict[str, Source | None]:
    if data is None:
        return {"train": None, "held_out": None}
    source = _source(data)
    if held_out is not None:
        return {"train": source, "held_out": _source(held_out)}
    index = np.arange(len(source))
    chosen = index % _HELD_OUT == _HELD_OUT - 1
    if not chosen.any():
        chosen[-1:] = True
    return {
        "train": SubsetSource(source, index[~chosen]),
        "held_out": SubsetSource(source, index[chosen]),
    }


def _source(data: Any) -> Source:
    return base.as_source(*data) if isinstance(data, tuple) else base.as_source(data)
