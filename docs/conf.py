"""The documentation site: `sphinx-build -W --keep-going -b html docs build/docs`."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

# The site describes the package and never needs an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "simmim_jax"
author = "The simmim_jax authors"
copyright = f"2026, {author}"  # the name that Sphinx reads
version = release = version_of("simmim_jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "docstrings",
    "config_reference",
    "command_reference",
]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist"]
# Headings get the anchors that GitHub gives them, so that links work in both places.
myst_heading_anchors = 4

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
# Types in signatures have short names, which several modules may share.
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

smartquotes = False

html_theme = "furo"
html_title = f"simmim_jax {release}"
