"""Fields of a converted model: defaults, and what users set with flags."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from simmim_jax.checkpoints.convert import settings
from simmim_jax.errors import UserError
from simmim_jax.models import ENCODERS

# Filters for resizing, by the names of config.data.interpolation.
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# Input images of the official code (timm's ImageNet constants).
OFFICIAL_DATA: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "eval_crop": 224 / 256,
}
# What images are to other libraries: fields of config.data that only ours has.
_PHOTOGRAPHS: dict[str, Any] = {
    "view": "image",
    "dtype": "uint8",
    "value_range": (),
    "bands": (),
    "nodata": (),
    "normalization": "standard",
}
# Fields of config.model that belong to the head.
HEAD = ("pool", "pool_norm", "head_scale")


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Settings from the user, which take precedence over those of the checkpoint.

    model, data: fields of config.model and config.data. leave_out: regular expression
    for names of tensors to leave out.
    """

    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] = ()
    leave_out: str = ""

    def __post_init__(self) -> None:
        """Raise UserError for a field of config.data that is unknown or malformed."""
        _check_names("data", self.data, DATA_FIELDS)
        for name, value in self.data.items():
            try:
                DATA_FIELDS[name](value)
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(
                    f"--data.{name}={value!r}: expected {error}, such as "
                    f"--data.{name}={_EXAMPLES[name]}"
                ) from error


def model_defaults(encoder: str) -> dict[str, Any]:
    """Return default values of the encoder's fields that a config may set."""
    return {
        field.name: field.default
        for field in dataclasses.fields(ENCODERS[encoder])
        if field.name not in ("parent", "name", "dtype", "activation_dtype")
    }


def own_preparation(data: Mapping[str, Any]) -> str:
    """Return fields of config.data that no other library has; "" for photographs."""
    return ", ".join(
        f"data.{name}={data[name]!r}"
        for name, usual in _PHOTOGRAPHS.items()
        if data.get(name, usual) != usual
    )


def check_model(fields: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown field of config.model, or one of another type.

    fields: all fields; given: those from flags.
    """
    defaults = model_defaults(fields["name"])
    _check_names("model", given, [*defaults, *HEAD])
    for name, default in defaults.items():
        if not _is_like(fields[name], default):
            raise UserError(
                f"model.{name}={fields[name]!r}: expected {type(default).__name__}, "
                f"such as {default!r}; add --model.{name}=…"
            )


def with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lists by tuples, which JSON does not have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default, and numbers are in range."""
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_count(x, low=0) for x in value)
    if isinstance(default, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and value >= 0
    return _is_count(value, low=min(default, 1))


def _is_count(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_names(part: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(given.keys() - set(known)):
        expected = ", ".join(sorted(known))
        raise UserError(f"--{part}.{unknown[0]}: expected one of {expected}.")


def _image_size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple):
        raise TypeError("a height and a width")
    return settings.pair(value)


def _share(value: Any) -> float:
    if not 0 < settings.number(value) <= 1:
        raise ValueError("a share above 0, up to 1")
    return float(value)


def _choice(*choices: str) -> Callable[[Any], str]:
    return settings.one_of({choice: choice for choice in choices})


# Fields of config.data that a converted model has, and what they may be.
DATA_FIELDS: dict[str, Any] = {
    "image_size": _image_size,
    "mean": settings.numbers,
    "std": settings.deviations,
    "interpolation": _choice(*FILTERS),
    "eval_crop": _share,
    "eval_fit": _choice("official", "cover", "squash", "pad"),
    "eval_center": _choice("round", "floor"),
}
PROBABILITIES = _choice("softmax", "sigmoid")
_EXAMPLES = {
    "image_size": "'(224, 224)'",
    "mean": "'(0.5, 0.5, 0.5)'",
    "std": "'(0.5, 0.5, 0.5)'",
    "interpolation": "bicubic",
    "eval_crop": "0.875",
    "eval_fit": "cover",
    "eval_center": "round",
}
