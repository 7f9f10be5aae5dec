"""A directive that writes the reference of the command line.

{commands}      what `simmim <command> --help` prints, for every command
"""

import contextlib
import importlib
import io
import os
from typing import Any

from config_reference import section
from docutils import nodes
from docutils.parsers.rst import Directive

from simmim_jax.cli.commands import COMMANDS

# Columns of the help texts.
WIDTH = "88"


class Commands(Directive):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections, in the order of `simmim --help`."""
        made = []
        for name in COMMANDS:
            text = help_of(name)
            block = nodes.literal_block(text, text, language="none")
            made.append(section(f"simmim {name}", f"simmim {name}", block))
        return made


def help_of(command: str) -> str:
    """Return what `simmim <command> --help` prints."""
    module = importlib.import_module(f"simmim_jax.cli.{COMMANDS[command][0]}")
    printed = io.StringIO()
    os.environ["COLUMNS"] = WIDTH
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main(["--help"])
    return printed.getvalue().rstrip()


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
