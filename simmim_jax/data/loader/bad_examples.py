"""Track unreadable images: count, log and list them, and stop if there are too many."""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from simmim_jax.data.codecs.image import BadImage
from simmim_jax.errors import UserError

# Judge the share of bad examples from this many on: chance then adds less than 0.01 to
# a share of 0.1.
ENOUGH = 10_000
# Every value of `reason_of`.
REASONS = (
    "missing", "unreadable", "empty", "not an image", "not audio", "truncated",
    "corrupt", "other values", "wrong mask", "too large", "needs raqm",
)  # fmt: skip
# (counts by reason, REASONS) -> their sums over all processes.
Total = Callable[[Mapping[str, int], Sequence[str]], Mapping[str, int]]
# What to do about some reasons.
_REMEDIES = {
    "other values": " config.data.dtype has to hold all values: set it to what the "
    "images have, or config.data.value_range to what becomes 0 and 255.",
    "too large": " config.data.max_image_pixels and config.data.max_file_mb say what "
    "is too large.",
    "needs raqm": " Letters that are joined or run from right to left need "
    "config.data.text_layout='raqm', and config.data.font with their glyphs.",
}
# Bad examples that are logged one by one.
_LOGGED = 20
_HEADER = "reason\tsplit\tindex\tpath\n"
_MAX_DIGITS = 18  # of an index
# Names may contain the separators of the list.
_ESCAPES = {ord("\\"): r"\\", ord("\t"): r"\t", ord("\n"): r"\n", ord("\r"): r"\r"}


@dataclasses.dataclass(frozen=True)
class BadExample:
    """An example that could not be read or decoded.

    index: in its source; path: "" where the source has none; attempt: 0 for the
    example whose turn it was, n for the n-th replacement.
    """

    index: int
    reason: str
    path: str
    attempt: int = 0


def reason_of(error: OSError | BadImage) -> str:
    """Return "missing", "unreadable" or the reason of `BadImage`."""
    if isinstance(error, BadImage):
        return error.reason
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


class BadImages:
    """The account of one split, kept in the main process.

    split: its name; max_fraction: of the examples; path: of the list, a table of
    reason, split, index and path in which an example appears once, also over several
    runs in this folder, or None; say: logs a line.
    """

    def __init__(
        self,
        split: str = "",
        *,
        max_fraction: float = 1.0,
        path: Path | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self._split, self._max_fraction = split, max_fraction
        self._path, self._say = path, say or (lambda text: None)
        self._known = _read_list(path, split) if path else set()
        self._logged = 0
        self.restart({})

    def restart(self, counts: Mapping[str, int]) -> None:
        """Continue counting from these numbers; judge by what comes from here on."""
        # Positions that had a bad example, by reason.
        self.counts = collections.Counter(counts)
        # Examples that were bad when it was their turn.
        self._bad: dict[int, str] = {}

    def add(self, found: Sequence[BadExample]) -> None:
        """Count, log and list the bad examples of a batch."""
        in_turn = {bad.index: bad.reason for bad in found if not bad.attempt}
        self.counts.update(bad.reason for bad in found if not bad.attempt)
        self._bad |= in_turn
        new = []
        for bad in found:
            if bad.index not in self._known:
                self._known.add(bad.index)
                new.append(bad)
        if not new:
            return
        for bad in new[: _LOGGED - self._logged]:
            # ASCII: the encoding of a terminal must not end a run.
            name = f"{self._split} example {bad.index} {bad.path!a}".strip()
            self._say(f"bad image, {bad.reason}: {name}")
        if self._logged < _LOGGED <= self._logged + len(new):
            self._say(f"further bad images are not logged one by one{self._listed()}")
        self._logged = min(_LOGGED, self._logged + len(new))
        if self._path:
            _append(self._path, self._split, new)

    def metrics(self, name: str) -> dict[str, int]:
        """Return {"name/reason": number of bad examples}."""
        return {f"{name}/{reason}": n for reason, n in self.counts.items()}

    def judge_pass(self, examples: int, total: Total) -> None:
        """Raise UserError if too many examples of a whole pass were bad.

        total: sums counts over processes; `counts` holds the sums from here on.
        """
        self.counts = collections.Counter(total(self.counts, REASONS))
        self._check(list(self.counts.elements()), examples)

    def judge(self, examples: int, enough: int = ENOUGH) -> None:
        """Raise UserError if too many of this many examples were bad, or all."""
        if self._bad and examples >= enough:
            self._check(self._bad.values(), examples)

    def _check(self, reasons: Collection[str], examples: int) -> None:
        # Rounded up to whole images; 1e-6 absorbs that 0.1 * 30 is above 3.
        allowed = math.ceil(self._max_fraction * examples - 1e-6)
        bad = len(reasons)
        if bad > allowed or bad == examples:
            raise self.too_many(f"{bad} of {examples} examples", reasons)

    def too_many(self, number: str, reasons: Iterable[str]) -> UserError:
        """Return the error that ends a run; number: of images, in words."""
        counts = collections.Counter(reasons)
        by_reason = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
        return UserError(
            f"{number} of the {self._split or 'data'} split have no usable image "
            f"({by_reason}){self._listed()}. Expected at most config.data."
            f"max_bad_fraction={self._max_fraction}: repair or remove the files, or "
            f"raise it.{''.join(_REMEDIES.get(reason, '') for reason in counts)}"
        )

    def _listed(self) -> str:
        return f", see {self._path}" if self._path else ""


def count_lists(workdir: Path) -> dict[Path, int]:
    """Return the lists of bad examples in a folder, and how many each has."""
    lists = sorted(workdir.glob("bad_images*.tsv"))
    return {path: path.read_bytes().count(b"\n") - 1 for path in lists}


def _read_list(path: Path, split: str) -> set[int]:
    """Return the indices in the list; cut off a line that a crash left unfinished.

    raises: UserError if the file is not such a list.
    """
    if not path.exists():
        return set()
    content, header = path.read_bytes(), _HEADER.encode()
    if not header.startswith(content[: len(header)]):
        raise _no_list(path, 1)
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    known = set()
    for number, row in enumerate(whole.split(b"\n")[1:-1], start=2):
        columns = row.split(b"\t")
        if len(columns) != _HEADER.count("\t") + 1 or not columns[2].isdigit():
            raise _no_list(path, number)
        if columns[1] == split.encode():
            known.add(int(columns[2][:_MAX_DIGITS]))
    return known


def _no_list(path: Path, line: int) -> UserError:
    return UserError(
        f"'{path}', line {line}, is damaged: expected a list of bad images, with the "
        f"columns {', '.join(_HEADER.split())}. Remove the file: the run writes a new "
        "one."
    )


def _append(path: Path, split: str, found: Sequence[BadExample]) -> None:
    # Paths that are not Unicode are written as their bytes.
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if file.tell() == 0:
            file.write(_HEADER)
        for bad in found:
            name = bad.path.translate(_ESCAPES)
            file.write(f"{bad.reason}\t{split}\t{bad.index}\t{name}\n")
