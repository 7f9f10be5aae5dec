"""Config fields with their meaning, and mappings parsed into dataclasses of them."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NewType

from simmim_jax.config import durations
from simmim_jax.errors import UserError, did_you_mean

# "10 epochs", "500 steps" or "100000 examples".
Duration = NewType("Duration", str)
# Types of fields in words.
TYPES = types.MappingProxyType(
    {
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
        "bool": "True or False",
    }
)


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a field is for and which values it takes."""

    doc: str
    unit: str = ""
    choices: tuple[Any, ...] = ()
    # Bounds, both included.
    low: float | None = None
    high: float | None = None
    # The upper bound itself is excluded.
    below: float | None = None
    # A resumed run may change it: it has no effect on what is learned.
    harmless: bool = False
    # What runs did that were recorded before the field existed; None: the default.
    earlier: Any = None

    @property
    def allowed(self) -> str:
        """The allowed values in words, "" for any value of the type."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        if self.below is not None:
            return f"{self.low:g} up to, but not including, {self.below:g}"
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return "" if self.low is None else f"{self.low:g} or more"


def field(default: Any, doc: str, **meaning: Any) -> Any:
    """Return a dataclass field; `meaning` has further fields of `Meaning`."""
    metadata = {"meaning": Meaning(doc, **meaning)}
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, doc: str, **defaults: Any) -> Any:
    """Return a dataclass field that is a group of fields, with other `defaults`."""
    metadata = {"meaning": Meaning(doc)}
    return dataclasses.field(default=cls(**defaults), metadata=metadata)


def meaning(field: dataclasses.Field) -> Meaning:
    """Return what a field means; a plain field takes any value of its type."""
    return field.metadata.get("meaning", Meaning(""))


def types_of(cls: type) -> dict[str, Any]:
    """Return the type of each field, with annotations resolved."""
    return typing.get_type_hints(cls)


def leaves(
    config: Any, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field, Any, Any]]:
    """Yield (dotted name, field, type, value) of all fields, groups unfolded."""
    hints = types_of(type(config))
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", each, hints[each.name], value


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested dicts of a config dataclass; tuples stay tuples."""
    return {
        each.name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for each in dataclasses.fields(config)
        for value in [getattr(config, each.name)]
    }


def parse_group(
    cls: type, values: Mapping[str, Any], path: str, stored: bool = False
) -> Any:
    """Return a `cls` of these values; fields that are missing get their defaults.

    path: name of the group in messages, such as "config.optim"; stored: drop unknown
    fields, and do not check values again.
    raises: UserError for an unknown field, a wrong type or a value out of range.
    """
    known = {each.name: each for each in dataclasses.fields(cls)}
    hints = types_of(cls)
    parsed = {}
    for name, value in values.items():
        if name not in known:
            if stored:
                continue
            raise UserError(_unknown(f"{path}.{name}", name, known))
        where, kind = f"{path}.{name}", hints[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}={value!r}: expected fields, not a value.")
            parsed[name] = parse_group(typing.cast(type, kind), value, where, stored)
        else:
            allowed = Meaning("") if stored else meaning(known[name])
            parsed[name] = _parse_value(value, kind, allowed, where)
    if stored:
        for name in known.keys() - parsed.keys():
            if (earlier := meaning(known[name]).earlier) is not None:
                parsed[name] = earlier
    return cls(**parsed)


def _unknown(where: str, name: str, known: Mapping[str, Any]) -> str:
    meant = did_you_mean(name, known)
    return f"unknown config field {where}: expected one of {', '.join(known)}.{meant}"


def _parse_value(value: Any, kind: Any, meaning: Meaning, where: str) -> Any:
    if typing.get_origin(kind) is tuple:
        return _parse_tuple(value, kind, meaning, where)
    value = _scalar(value, kind, f"{where}={value!r}")
    if meaning.choices and value not in meaning.choices:
        meant = did_you_mean(str(value), map(str, meaning.choices))
        raise UserError(f"{where}={value!r}: expected one of {meaning.choices}.{meant}")
    _check_bounds(value, meaning, where)
    return value


def _parse_tuple(value: Any, kind: Any, meaning: Meaning, where: str) -> tuple:
    items, parameters = value, typing.get_args(kind)
    any_length = parameters[-1] is Ellipsis
    is_sequence = isinstance(value, list | tuple)
    if not is_sequence or (not any_length and len(value) != len(parameters)):
        numbers = "values" if any_length else f"{len(parameters)} values"
        what = meaning.unit or numbers
        example = (64,) * (2 if any_length else len(parameters))
        raise UserError(
            f"{where}={value!r}: expected {what}, such as --{where}='{example}'."
        )
    each = parameters[:1] * len(items) if any_length else parameters
    parsed = tuple(
        _scalar(item, part, f"{where}={value!r}: {item!r}")
        for item, part in zip(items, each, strict=True)
    )
    for item in parsed:
        _check_bounds(item, meaning, f"{where}={value!r}: {item!r}", inside=True)
    return parsed


def _scalar(value: Any, kind: Any, shown: str) -> Any:
    """Return `value` as `kind`; shown: field and value in messages."""
    if kind is Duration:
        try:
            durations.parse(value)
        except (UserError, AttributeError):
            raise UserError(
                f"{shown}: invalid duration. Expected a number and a unit, "
                "such as '10 epochs', '500 steps' or '100000 examples'."
            ) from None
        return value
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and is_int:
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (is_int and kind is int) or (kind is not int and isinstance(value, kind)):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UserError(f"{shown}: expected {TYPES.get(name, name)}.")


def _check_bounds(
    value: Any, meaning: Meaning, where: str, inside: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    outside = (
        math.isnan(value)
        or (meaning.low is not None and value < meaning.low)
        or (meaning.high is not None and value > meaning.high)
        or (meaning.below is not None and value >= meaning.below)
    )
    if outside:
        said = where if inside else f"{where}={value!r}"
        raise UserError(f"{said}: expected {meaning.allowed}.")
