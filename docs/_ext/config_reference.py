"""Directives that write the reference of configs and of their fields.

    {config-fields} Pretrain     tables of every field of a dataclass of the schema
    {config-files}               every config of the package, with its docstring

Both come from the code alone: simmim_jax/config/schema.py and configs/.
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from docstrings import inline, to_nodes
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util.docutils import SphinxDirective

from simmim_jax.cli import arguments
from simmim_jax.config import parsing, schema

HEADER = ("Field", "Type", "Default", "Meaning")


def section(title: str, name: str, *children: nodes.Node) -> nodes.section:
    """Return a section with an anchor made of `name`."""
    made = nodes.section("", nodes.title(title, title), *children)
    made["ids"] = [nodes.make_id(name)]
    made["names"] = [nodes.fully_normalize_name(name)]
    return made


def table(header: Iterable[str], rows: Iterable[Iterable[list[nodes.Node]]]):
    """Return a table; a cell is a list of inline nodes."""
    header = list(header)
    group = nodes.tgroup("", cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    head = nodes.row()
    for text in header:
        head += nodes.entry("", nodes.paragraph(text, text))
    group += nodes.thead("", head)
    body = nodes.tbody()
    for cells in rows:
        row = nodes.row()
        for cell in cells:
            row += nodes.entry("", nodes.paragraph("", "", *cell))
        body += row
    group += body
    return nodes.table("", group)


class ConfigFields(SphinxDirective):
    """Sections with tables of the fields of a dataclass of the schema."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section for the class's own fields and for each group."""
        cls = getattr(schema, self.arguments[0])
        return list(_sections(cls(), cls.__name__.lower(), "config"))


def _sections(group: Any, prefix: str, path: str) -> Iterator[nodes.section]:
    """Yield the section of a group's fields, then those of the groups in it."""
    inner, rows = [], []
    hints = parsing.types_of(type(group))
    for each in dataclasses.fields(group):
        value = getattr(group, each.name)
        if dataclasses.is_dataclass(value):
            inner.append((f"{path}.{each.name}", value, each))
        else:
            rows.append(_row(each, hints[each.name], value))
    children: list[nodes.Node] = to_nodes(type(group).__doc__ or "")
    yield section(path, f"{prefix}-{path}", *children, table(HEADER, rows))
    for inner_path, value, _ in inner:
        yield from _sections(value, prefix, inner_path)


def _row(each: dataclasses.Field, kind: Any, value: Any) -> list[list[nodes.Node]]:
    meaning, type_ = parsing.meaning(each), type_name(kind)
    cell = _quoted(meaning.doc)
    if meaning.unit and meaning.unit.removesuffix("s") != type_:
        cell += [nodes.Text(f" Unit: {meaning.unit}.")]
    if meaning.choices:
        cell += [nodes.Text(" Allowed:")]
        for choice in meaning.choices:
            cell += [nodes.Text(" "), _literal(_repr(choice))]
    elif meaning.allowed:
        cell += [nodes.Text(f" Allowed: {meaning.allowed}.")]
    name = [_literal(each.name), nodes.Text(" †" * meaning.harmless)]
    return [name, inline(type_), [_literal(_repr(value))], cell]


def _repr(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _literal(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def _quoted(text: str) -> list[nodes.Node]:
    """Return inline nodes in which "values" in quotes are code."""
    parts = re.split(r'("[^"]*")', text)
    return [_literal(p) if i % 2 else nodes.Text(p) for i, p in enumerate(parts) if p]


def type_name(kind: Any) -> str:
    """Return "int", "duration", "(int, int)" or "(float, ...)" for a type."""
    if kind is parsing.Duration:
        return "duration"
    if typing.get_origin(kind) is tuple:
        names = ("..." if k is ... else type_name(k) for k in typing.get_args(kind))
        return f"({', '.join(names)})"
    return kind.__name__


class ConfigFiles(Directive):
    """A section for each config of the package."""

    def run(self) -> list[nodes.Node]:
        """Return the sections, in the order of `simmim configs`."""
        made = []
        for name in arguments.config_names():
            text = (arguments.config_folder() / f"{name}.py").read_text()
            doc = ast.get_docstring(ast.parse(text)) or ""
            made.append(section(name, f"config {name}", *to_nodes(doc)))
        return made


def setup(app: Any) -> dict[str, bool]:
    """Add both directives."""
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("config-files", ConfigFiles)
    return {"parallel_read_safe": True}
