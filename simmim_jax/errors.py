"""Errors that are meant for the user: the command line prints them as a sentence.

Every other exception is a bug and keeps its traceback. A message says what is wrong
(field and value), what was expected and what to do.
"""


class UserError(ValueError):
    """Something that the user can mend: a value, a file, a command."""


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder or data set that does not exist."""


class ExistsError(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed; the message has the pip command."""


class NonFiniteError(UserError, ArithmeticError):
    """The loss or a gradient is NaN or infinite."""


class Interrupted(Exception):
    """The run stopped on a signal, after it saved a checkpoint to resume from."""
