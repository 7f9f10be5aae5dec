"""List the configs that come with the package, or explain one of them.

    simmim configs
    simmim configs small
    simmim train --config=quickstart

--config also takes a Python file of your own.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Sequence

from simmim_jax.cli import arguments

_WIDTH = 88


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each config, or what one is for and which arguments it takes."""
    parser = arguments.parser("configs", __doc__)
    parser.add_argument("name", nargs="?", help="config to explain")
    if asked := parser.parse_args(argv).name:
        print(explanation(asked))
        return
    purposes = {name: purpose(name) for name in arguments.config_names()}
    width = max(map(len, purposes))
    for name, text in purposes.items():
        print(f"{name:<{width}}  {text}")


def explanation(name: str) -> str:
    """Return a config's docstring and its arguments; name: with or without ".py".

    raises: NotFoundError for a config that does not come with the package.
    """
    name = arguments.stem_of(name)
    module = importlib.import_module(f"simmim_jax.configs.{name}")
    takes = "ARGUMENT: smoke"
    if names := getattr(module, "ARGUMENTS", ()):
        takes += f", NAME or NAME,smoke; NAME is one of {', '.join(names)}"
    return "\n\n".join(
        [
            str(inspect.getdoc(module)),
            f"--config={name}[:ARGUMENT]: {inspect.getdoc(module.get_config)}",
            textwrap.fill(takes, _WIDTH),
        ]
    )


def purpose(name: str) -> str:
    """Return the first sentence of a config's docstring."""
    text = (arguments.config_folder() / f"{name}.py").read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    return " ".join(doc.partition("\n\n")[0].split())
