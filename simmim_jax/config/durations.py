"""Durations such as "10 epochs", "500 steps" or "100000 examples", in steps."""

from simmim_jax.errors import UserError

UNITS = ("epochs", "steps", "examples")


def parse(text: str) -> tuple[float, str]:
    """Return amount and unit of a duration such as "10 epochs".

    raises: UserError for anything else.
    """
    number, _, unit = str(text).partition(" ")
    try:
        amount = float(number)
    except ValueError:
        amount = -1
    if unit not in UNITS or not 0 <= amount < float("inf"):
        raise UserError(
            f"invalid duration {text!r}: expected a number and a unit, such as "
            "'10 epochs', '500 steps' or '100000 examples'."
        )
    return amount, unit


def num_steps(duration: str, batch_size: int, num_examples: int) -> int:
    """Return a duration in steps: at least 1, but 0 for a duration of 0.

    An epoch has floor(num_examples / batch_size) steps, as in the official code; where
    the batch is larger than the data set, num_examples / batch_size.
    """
    amount, unit = parse(duration)
    per_step = {
        "epochs": 1 / (num_examples // batch_size or num_examples / batch_size),
        "steps": 1,
        "examples": batch_size,
    }
    return max(1, round(amount / per_step[unit])) if amount else 0


def scaled(duration: str, factor: float) -> str:
    """Return a duration times a factor, in its own unit.

    Steps and examples are whole numbers: at least 1, but 0 for a duration of 0.
    """
    amount, unit = parse(duration)
    amount *= factor
    if unit == "epochs":
        return f"{amount:.6g} {unit}"
    return f"{max(1, round(amount)) if amount else 0} {unit}"
