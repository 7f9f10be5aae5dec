"""Errors that are meant for the user: the command line prints them as a sentence.

Every other exception is a bug and keeps its traceback. A message says what is wrong
(field and value), what was expected and what to do.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user can mend: a value, a file, a command."""


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder or data set that does not exist."""


class ExistsError(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed; the message has the pip command."""


class StorageError(UserError, OSError):
    """A folder that cannot be written to, or has too little space."""


class NonFiniteError(UserError, ArithmeticError):
    """The loss or a gradient is NaN or infinite."""


class Interrupted(BaseException):
    """A run stopped on a signal; there is a checkpoint to resume from.

    Like KeyboardInterrupt it may come at any point, so `except Exception` lets it pass.
    """

    def __init__(self, text: str, agreed: bool = False):
        """agreed: whether all processes of the run stop at the same step."""
        super().__init__(text)
        self.agreed = agreed


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for a known name like `name`, "" if there is none."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
