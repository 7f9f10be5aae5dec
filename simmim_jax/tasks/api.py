"""What `import simmim_jax` offers: train from Python, and use what was trained."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from simmim_jax.checkpoints import layout
from simmim_jax.checkpoints.convert import formats
from simmim_jax.checkpoints.convert.overrides import Overrides
from simmim_jax.checkpoints.disk import make_workdir
from simmim_jax.config import durations, schema
from simmim_jax.config.parsing import to_dict
from simmim_jax.config.schema import (
    Compare,
    Finetune,
    Pretrain,
    Segment,
    Transcribe,
)
from simmim_jax.data.codecs.image import PHOTO_CHANNELS
from simmim_jax.data.sources import base, targets
from simmim_jax.data.sources.base import Source, SubsetSource
from simmim_jax.data.sources.paths import hashed_split
from simmim_jax.errors import UserError, did_you_mean
from simmim_jax.runtime import workdir_lock
from simmim_jax.tasks import architecture, classify
from simmim_jax.tasks import compare as comparison
from simmim_jax.tasks import pretrain as pretraining
from simmim_jax.tasks import segment as segmentation
from simmim_jax.tasks import transcribe as speech_to_text
from simmim_jax.tasks.encoder import Encoder
from simmim_jax.tasks.export import export
from simmim_jax.tasks.predict import Predictor
from simmim_jax.tasks.recognize import Recognizer
from simmim_jax.tasks.segment_predict import SegmentPredictor
from simmim_jax.training import loop
from simmim_jax.training.run import Trained

__all__ = [
    "compare",
    "export",
    "finetune",
    "load",
    "pretrain",
    "segment",
    "transcribe",
]

# Name of the data set of a run that gets its data from Python.
_FROM_PYTHON = "<given in Python>"
# Fields of config.data that an encoder's input depends on, and of config that say what
# is hidden and predicted.
_INPUT = (
    *("view", "dtype", "image_size", "channels", "bands", "fill_bands", "nodata"),
    *("normalization", "mean", "std", "clip", "value_range", "statistics"),
    *("display_bands", "level", "flip", "font", "text_layout"),
)
_TARGETS = ("mask", "target", "loss", "decoder")
# Configs of each kind.
_EXAMPLES = {
    Pretrain: "small.get_config('pretrain')",
    Finetune: "small.get_config('finetune')",
    Segment: "segment.get_config()",
    Transcribe: "transcribe.get_config()",
    Compare: "small.get_config('compare')",
}


def pretrain(
    config: ConfigDict | Pretrain | None = None,
    out: str | Path = "",
    *,
    data: Any = None,
    held_out: Any = None,
    model: str = "",
    duration: str = "",
    init_from: str | Path = "",
) -> Trained:
    """Pre-train as a config says, or resume the run in the folder `out`.

    config: such as simmim_jax.configs.small.get_config(), which is the default. data:
    images in place of the config's data set: what config.data.dataset can be, such as
    the path of a folder; an array [n h w c]; any Grain random-access source or sequence
    of examples (see `as_source`). held_out: arrays or examples likewise; without it
    about 5 % of those in `data` are held out, by a hash of the position. model: in
    place of a config, the name of an encoder that `simmim configs sizes` lists, which
    SimMIM's recipe trains in batches of 64. duration: in place of the config's, such
    as "20 epochs"; without a config, a tenth of it is the warm-up. init_from: in place
    of the config's, a workdir or checkpoint to start from, whose encoder, images and
    targets are kept without a config. In a script, call it below
    `if __name__ == "__main__":`, since workers import the script again.
    raises: UserError where the config makes no sense.
    """
    if config is None:
        config = _pretraining(model, data, duration, init_from)
    elif model:
        raise UserError(
            f"model={model!r}: it is in place of a config, set config.model"
        )
    parsed = _parse(config, Pretrain, data, duration, init_from)
    sources = _sources(data, held_out)
    folder = _folder(out)
    parsed = _adopted(parsed, folder)
    with workdir_lock.held(folder):
        run = pretraining.build(_marked(parsed, data), folder, **sources)
        return loop.train(run)


def finetune(
    config: ConfigDict | Finetune | None = None,
    out: str | Path = "",
    *,
    data: Any = None,
    held_out: Any = None,
    duration: str = "",
    init_from: str | Path = "",
) -> Trained:
    """Fine-tune as a config says, or resume the run in `out`; see `pretrain`.

    config: by default the recipe of the encoder in `init_from`, for small ones that of
    simmim_jax.configs.small, for others the official one in batches of 64, with images
    as it knows them. data, held_out: with labels; a pair (images, labels) will do.
    Labels int [n] are classes; with config.loss of "sigmoid" [n, m] of 1 and 0, of "l1"
    or "l2" float [n] or [n, m].
    """
    if config is None:
        config = _finetuning(data, duration, init_from)
    parsed = _parse(config, Finetune, data, duration, init_from)
    sources = _sources(data, held_out)
    folder = _folder(out)
    parsed = _adopted(parsed, folder)
    with workdir_lock.held(folder):
        return loop.train(classify.build(_marked(parsed, data), folder, **sources))


def segment(
    config: ConfigDict | Segment,
    out: str | Path,
    *,
    data: Any = None,
    held_out: Any = None,
    duration: str = "",
    init_from: str | Path = "",
) -> Trained:
    """Learn to segment as a config says, or resume the run in `out`; see `pretrain`.

    data, held_out: a folder of images and masks, or examples with "mask", [h w] of
    class indices or its encoded file, beside "image".
    """
    parsed = _parse(config, Segment, data, duration, init_from)
    sources = _sources(data, held_out)
    folder = _folder(out)
    parsed = _adopted(parsed, folder)
    with workdir_lock.held(folder):
        return loop.train(segmentation.build(_marked(parsed, data), folder, **sources))


def transcribe(
    config: ConfigDict | Transcribe,
    out: str | Path,
    *,
    data: str | Path | None = None,
    duration: str = "",
    init_from: str | Path = "",
) -> Trained:
    """Learn speech to text as a config says, or resume the run in `out`.

    data, duration, init_from: in place of the config's, as in `pretrain`; data: a path.
    """
    parsed = _parse(config, Transcribe, data, duration, init_from)
    folder = _folder(out)
    parsed = _adopted(parsed, folder)
    with workdir_lock.held(folder):
        return loop.train(speech_to_text.build(parsed, folder))


# By the class of the config.
RUNS: dict[type, Callable[..., Trained]] = {
    Pretrain: pretrain,
    Finetune: finetune,
    Segment: segment,
    Transcribe: transcribe,
}


def compare(config: ConfigDict | Compare, out: str | Path) -> dict[str, Any]:
    """Pre-train, then fine-tune with and without it; see `tasks.compare.compare`."""
    parsed, folder = _parse(config, Compare), _folder(out)
    parsed = _adopted(parsed, folder)
    with workdir_lock.held(folder):
        return comparison.compare(parsed, folder)


def load(path: str | Path) -> Encoder | Predictor | Recognizer | SegmentPredictor:
    """Load the workdir of a run, a checkpoint, or the weights of another library.

    path: also an official .pth or .safetensors file, or a folder of timm or Hugging
    Face transformers, which is converted in memory; `simmim convert` writes the result
    and takes settings that such a file lacks.
    returns: a fine-tuned classifier, or the encoder of a pre-training run, both of
    which turn images into vectors with `embed`; or what segments images or transcribes
    sounds.
    """
    path = Path(path).expanduser()
    if formats.is_foreign(path):
        return _converted(path)
    learned = layout.read_meta(path)
    if "vocabulary" in learned:
        return Recognizer.load(path)
    if "mask_classes" in learned:
        return SegmentPredictor.load(path)
    return (Predictor if learned.get("class_names") else Encoder).load(path)


def _adopted(config: Any, workdir: Path) -> Any:
    """Return the config with the architecture that it starts from, and print it."""
    adopted, said = architecture.adopt(config, workdir=workdir)
    for line in said:
        print(line)
    return adopted


def _converted(path: Path) -> Encoder | Predictor:
    """Convert weights in memory; print what was assumed and left out."""
    model = formats.read(path, Overrides())
    for note in formats.notes(model, "simmim_jax"):
        print(f"note: {note}")
    if model.left_out:
        print(f"left out: {', '.join(model.left_out)}")
    meta = model.meta(str(path))
    config = schema.single(schema.parse(meta["config"], stored=True))
    params = jax.tree.map(jax.numpy.asarray, model.params())  # onto the device, once
    if model.class_names:
        assert isinstance(config, Finetune)
        return Predictor.of(params, config, model.class_names, meta["step"])
    return Encoder.of(params, config, meta["step"])


def _recipes(name: str) -> Any:
    """Return a module of configs, which the package finds where it is installed."""
    return importlib.import_module(f"simmim_jax.configs.{name}")


def _pretraining(
    model: str, data: Any, duration: str, init_from: str | Path
) -> ConfigDict:
    """Return the config of a run that is given none."""
    if data is None:
        raise UserError("expected a config, or data, such as data='/data/photos'.")
    learned: Any = _learned(init_from) if init_from else None
    if not model and (learned is None or _is_small(learned)):
        config = _recipes("small").get_config("pretrain")
    else:
        variant = model or f"{learned.model.name}_base"
        names = sorted(_recipes("models").VARIANTS)
        if variant not in names:
            raise UserError(
                f"model={model!r}: expected one of {', '.join(names)}."
                + did_you_mean(model, names)
            )
        config = _recipes("sizes").get_config(variant)
        config.data.batch_size = 64
        config.duration = "100 epochs"
        config.optim.decay, config.optim.milestones = "cosine", ()
    if learned is not None:
        _adopt_input(config, learned)
        if isinstance(learned, Pretrain):
            config.update({name: to_dict(getattr(learned, name)) for name in _TARGETS})
    return _of_length(config, duration)


def _finetuning(data: Any, duration: str, init_from: str | Path) -> ConfigDict:
    """Return the config of a run that is given none; its encoder is adopted later."""
    if data is None or not init_from:
        raise UserError(
            "expected a config, or data and init_from, such as data='/data/labelled', "
            "init_from='runs/mine'."
        )
    learned = _learned(init_from)
    if _is_small(learned):
        config = _recipes("small").get_config("finetune")
    else:
        config = _recipes(f"{learned.model.name}_base_finetune").get_config()
        config.data.batch_size = 64
    _adopt_input(config, learned)
    is_bytes = config.data.dtype in ("auto", "uint8")
    if not is_bytes or config.data.channels not in PHOTO_CHANNELS:
        _recipes("common").only_crop_and_flip(config)  # the others need photographs
    return _of_length(config, duration)


def _learned(place: str | Path) -> Any:
    meta = layout.read_meta(place)
    return schema.single(schema.parse(meta["config"], stored=True))


def _is_small(learned: Any) -> bool:
    """Whether an encoder is smaller than any with a published recipe."""
    return learned.model.name == "vit" and learned.model.embed_dim < 384


def _adopt_input(config: ConfigDict, learned: Any) -> None:
    """Take over what the input of an encoder depends on."""
    names = _INPUT if learned.data.view == "image" else (*_INPUT, "crop_scale")
    for name in names:
        config.data[name] = getattr(learned.data, name)
    if "window_size" in config.model:
        config.model.window_size = to_dict(learned.model)["window_size"]


def _of_length(config: ConfigDict, duration: str) -> ConfigDict:
    """Return the config with a duration, unless empty, whose tenth is the warm-up."""
    if duration:
        config.optim.warmup = durations.scaled(duration, 0.1)
        config.duration = duration
    return config


def _folder(out: str | Path) -> Path:
    if not out:
        raise UserError("out='': expected the folder of the run, such as 'runs/mine'.")
    return make_workdir(out)


def _parse(
    config: Any,
    kind: type[Any],
    data: Any = None,
    duration: str = "",
    init_from: str | Path = "",
) -> Any:
    """Return the typed config, with what is given in place of its own."""
    is_fields = isinstance(config, ConfigDict | Mapping)
    parsed: Any = schema.parse(config) if is_fields else config
    if not isinstance(parsed, kind):
        what = f"config={config!r}: expected a config, not its name"
        if hasattr(parsed, "mode"):
            what = f"config.mode={parsed.mode!r}: expected the config of another mode"
        raise UserError(f"{what}, such as simmim_jax.configs.{_EXAMPLES[kind]}.")
    if duration:
        durations.parse(duration)
    if not (data is None and not duration and not init_from):
        fields = schema.config_dict(parsed)
        if _is_place(data):
            fields.data.dataset = str(data)
        fields.duration = duration or fields.duration
        fields.init_from = str(init_from) or fields.init_from
        parsed = schema.parse(fields)
    return parsed


def _is_place(data: Any) -> bool:
    """Whether it is what config.data.dataset can be, not the images themselves."""
    return isinstance(data, str | Path)


def _marked(config: Any, data: Any) -> Any:
    """Return the config, whose record says where the data came from."""
    if data is None or _is_place(data):
        return config
    marked = dataclasses.replace(config.data, dataset=_FROM_PYTHON)
    return dataclasses.replace(config, data=marked)


def _sources(data: Any, held_out: Any) -> dict[str, Any]:
    if _is_place(held_out):
        raise UserError(
            f"held_out={str(held_out)!r}: expected arrays or examples. Of data in "
            "files, name a split: config.data.eval_split."
        )
    given = None if held_out is None else _source(held_out)
    if data is None or _is_place(data):
        return {"train": None, "held_out": given}
    source = _source(data)
    if given is not None:
        return {"train": source, "held_out": given}
    names = [str(index).encode() for index in range(len(source))]
    return {
        part: SubsetSource(source, hashed_split(names, split, "data"))
        for part, split in (("train", "train"), ("held_out", "validation"))
    }


def _source(data: Any) -> Source:
    if isinstance(data, list | tuple) and data and isinstance(data[0], Path):
        raise UserError(
            "data is a list of paths: expected one folder, a text file that lists "
            "images, or arrays; several data sets are one text, \"['/a', '/b']\"."
        )
    is_pair = isinstance(data, tuple) and len(data) == 2
    source = targets.as_source(*data) if is_pair else base.as_source(data)
    if not len(source):
        raise UserError("data is empty: expected at least one example.")
    return source
