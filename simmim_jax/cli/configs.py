"""List the configs that come with the package, each with its purpose.

    simmim configs
    simmim train --config=quickstart

--config also takes a Python file of your own.
"""

import ast
from collections.abc import Sequence

from simmim_jax.cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each config."""
    arguments.parser("configs", __doc__).parse_args(argv)
    purposes = {name: purpose(name) for name in arguments.config_names()}
    width = max(map(len, purposes))
    for name, text in purposes.items():
        print(f"{name:<{width}}  {text}")


def purpose(name: str) -> str:
    """Return the first sentence of a config's docstring."""
    text = (arguments.config_folder() / f"{name}.py").read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    return " ".join(doc.partition("\n\n")[0].split())
