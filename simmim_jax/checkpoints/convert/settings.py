"""Settings of other libraries' descriptions: each is used, harmless, or refused."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from simmim_jax.errors import UserError

# Sizes of images and windows that a model is built for; larger ones are typing errors.
_MAX_SIZE = 4096
_MISSING = object()


class Settings:
    """A mapping from another library, read setting by setting.

    Every setting must be taken, or named in `ignore`, before `finish`, which refuses
    the others by name: a setting that is unknown here may change what a model computes.
    None counts as absent. All methods raise UserError with the setting's name.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise UserError(
                f"{where} is {_short(values)}. Expected an object with named settings."
            )
        self.where = where
        self._left = {str(k): v for k, v in values.items() if v is not None}

    def __contains__(self, name: str) -> bool:
        """Whether the setting is given and not taken yet."""
        return name in self._left

    def take(
        self, name: str, parse: Callable[[Any], Any], default: Any = _MISSING
    ) -> Any:
        """Return a setting, parsed by a function of this module.

        Raises UserError if it is malformed, or missing without a default.
        """
        if name not in self._left:
            if default is _MISSING:
                raise UserError(
                    f"{self.where} lacks the setting '{name}'. Add it there, or "
                    "convert the tensors alone and set --model.FIELD=VALUE."
                )
            return default
        value = self._left.pop(name)
        try:
            return parse(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.where} has {name}={_short(value)}: expected {error}. Correct "
                "it there."
            ) from error

    def section(self, name: str) -> "Settings":
        """Return a group of settings; an empty one if it is missing."""
        return Settings(self._left.pop(name, {}), f"{self.where} in '{name}'")

    def expect(self, name: str, *allowed: Any, reason: str) -> None:
        """Refuse a setting that is given and has another value than those allowed.

        reason: what our models do, to complete the sentence.
        """
        if name in self._left:
            value = self._left.pop(name)
            if not any(value == x and type(value) is type(x) for x in allowed):
                raise self.refusal(name, value, reason)

    def ignore(self, names: Iterable[str]) -> None:
        """Accept any value of settings that do not change what is converted."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse the settings that were neither taken nor ignored."""
        for name, value in sorted(self._left.items()):
            raise self.refusal(name, value, "this converter does not know the setting")

    def refusal(self, name: str, value: Any, reason: str) -> UserError:
        """Return the error for a setting that our models do not support."""
        return UserError(
            f"{self.where} has {name}={_short(value)}, but {reason}. Remove it from "
            "that file if it has no effect on results; otherwise this model cannot be "
            "converted."
        )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raise UserError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"'{path}' is not JSON ({_short(str(error))}). Download or save it again."
        ) from error


# ---- Parsers: each raises ValueError or TypeError that says what it expects ----------


def number(value: Any) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError("a number")
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def rate(value: Any) -> float:
    """A probability."""
    if not 0 <= number(value) < 1:
        raise ValueError("a number from 0 to 1")
    return float(value)


def positive(value: Any) -> float:
    """A number above 0."""
    if number(value) <= 0:
        raise ValueError("a number above 0")
    return float(value)


def size(value: Any) -> int:
    """A length in pixels or tokens."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number")
    if not 1 <= value <= _MAX_SIZE:
        raise ValueError(f"a whole number from 1 to {_MAX_SIZE}")
    return value


def pair(value: Any) -> tuple[int, int]:
    """A height and width, or one number for both."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError("a height and a width")
        return size(value[0]), size(value[1])
    return size(value), size(value)


def sizes(value: Any) -> tuple[int, ...]:
    """A length for each stage."""
    return tuple(map(size, _sequence(value)))


def sizes_or_zeros(value: Any) -> tuple[int, ...]:
    """A length for each stage, where 0 stands for none."""
    return tuple(0 if x == 0 else size(x) for x in _sequence(value))


def numbers(value: Any) -> tuple[float, ...]:
    """A number, or one for each channel."""
    return tuple(map(number, value if isinstance(value, list | tuple) else [value]))


def deviations(value: Any) -> tuple[float, ...]:
    """A number above 0, or one for each channel."""
    return tuple(map(positive, numbers(value)))


def share_or_zero(value: Any) -> float:
    """A share, where 0 stands for the default."""
    if not 0 <= number(value) <= 1:
        raise ValueError("a share from 0 to 1")
    return float(value)


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError("a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a text without lone surrogates") from None
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(map(text, _sequence(value)))


def one_of(choices: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """Return a parser that maps known values to ours."""

    def parse(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"one of {list(choices)}")
        if value not in choices:
            raise ValueError(f"one of {list(choices)}")
        return choices[value]

    return parse


def _sequence(value: Any) -> list | tuple:
    if not isinstance(value, list | tuple):
        raise TypeError("a list")
    return value


def _short(value: Any) -> str:
    """Return a value in one line of bounded length."""
    shown = re.sub(r"\s+", " ", value if isinstance(value, str) else repr(value))
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return repr(shown) if isinstance(value, str) else shown
