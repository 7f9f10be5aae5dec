"""Turn the docstrings of this package into reStructuredText.

They are plain text: paragraphs, `code`, indented examples, and lines of the form
"name: text" for parameters, "returns: text" and "raises: Error for text". Parameters
may also stand under "Args:", as in Google's style.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes

# `code` and whether a letter follows, or a character that reStructuredText interprets.
_MARKUP = re.compile(r"(`+)(.+?)\1(?=(\w?))|[*_|`\\]")
_FIELD = re.compile(r"(\*{0,2}[a-z_]\w*(?:, [a-z_]\w*)*|Returns|Raises): (?=\S)")
_ARGS = re.compile(r"^Args:\n((?:  .*(?:\n|$))+)", re.M)
# Fields may follow each other on one line: "name: text; name: text. name: text".
_NEXT_FIELD = re.compile(r"[;.] (?=[a-z_]\w*: )")
_BULLET = re.compile(r"[-*] ")
_FLAX_FIELDS = re.compile(r"(, )?parent: [^=]*= <[^>]*>, name: str \| None = None")


def to_rst(text: str) -> str:
    """Return a docstring as reStructuredText that cannot be malformed."""
    return "\n\n".join(_block_to_rst(block) for block in _blocks(text)) + "\n"


def to_nodes(text: str) -> list[nodes.Node]:
    """Return the paragraphs and examples of a docstring as docutils nodes."""
    return [
        nodes.literal_block(example, example, language="none")
        if (example := _example(block)) is not None
        else nodes.paragraph("", "", *inline(_joined(block)))
        for block in _blocks(text)
    ]


def inline(text: str) -> list[nodes.Node]:
    """Return text with `code` in it as docutils nodes."""
    parts = re.split(r"`+([^`]+)`+", text)
    return [
        nodes.literal(part, part) if index % 2 else nodes.Text(part)
        for index, part in enumerate(parts)
        if part
    ]


def _blocks(text: str) -> list[list[str]]:
    """Return the lines of each paragraph; an indented example may have empty lines."""
    blocks: list[list[str]] = []
    text = textwrap.dedent(text).strip("\n")
    text = _ARGS.sub(lambda found: textwrap.dedent(found[1]), text)
    for part in re.split(r"\n\s*\n", text):
        lines = part.splitlines()
        if blocks and _example(lines) is not None and _example(blocks[-1]) is not None:
            blocks[-1] += ["", *lines]
        elif part.strip():
            blocks.append(lines)
    return blocks


def _example(lines: Sequence[str]) -> str | None:
    """Return the text of an indented block, None for a paragraph."""
    if any(line and not line.startswith("  ") for line in lines):
        return None
    return textwrap.dedent("\n".join(lines))


def _joined(lines: Sequence[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _block_to_rst(lines: Sequence[str]) -> str:
    if (example := _example(lines)) is not None:
        return "::\n\n" + textwrap.indent(example, "    ")
    return "\n\n".join(_items(lines))


def _items(lines: Sequence[str]) -> Iterator[str]:
    """Yield a line for each paragraph, bullet and field of a block."""
    begin = 0
    for end in range(1, len(lines) + 1):
        if end == len(lines) or _FIELD.match(lines[end]) or _BULLET.match(lines[end]):
            yield from _item(_joined(lines[begin:end]))
            begin = end


def _item(text: str) -> Iterator[str]:
    if field := _FIELD.match(text):
        first, *others = _NEXT_FIELD.split(text[field.end() :])
        yield from _field(field[1], first)
        for other in others:
            yield from _item(other)
    elif bullet := _BULLET.match(text):
        yield f"- {_escaped(text[bullet.end() :])}"
    else:
        yield _escaped_start(_escaped(text))


def _field(name: str, text: str) -> Iterator[str]:
    if name.lower() == "returns":
        yield f":returns: {_escaped(text)}"
    elif name.lower() == "raises":
        error, _, reason = text.partition(" ")
        yield f":raises {error.rstrip(',:')}: {_escaped(reason)}"
    else:
        for each in name.split(", "):
            yield f":param {_escaped(each)}: {_escaped(text)}"


def _escaped(text: str) -> str:
    def replace(found: re.Match) -> str:
        if found[2]:
            # A literal ends at a space or at punctuation; "\\ " prints neither.
            return f"``{found[2].strip()}``" + "\\ " * bool(found[3])
        return f"\\{found[0]}"

    return _MARKUP.sub(replace, text)


def _escaped_start(text: str) -> str:
    """Return text that begins no list, field or comment."""
    return re.sub(r"^(?=[-+•:.>]|\(?\w+[.)] )", r"\\", text)


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = to_rst("\n".join(lines)).splitlines()


def _shorten(app, what, name, obj, options, signature: str | None, returns):
    """Leave out the fields that every Flax module has."""
    if signature is None:
        return None
    return _FLAX_FIELDS.sub("", signature), returns


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _shorten)
    return {"parallel_read_safe": True}
