"""Examples whose image cannot be had: counted, told, listed, and judged."""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from simmim_jax.data.codecs.image import BadImage
from simmim_jax.errors import UserError

# Fewer examples do not tell how large the bad part of a data set is: of so many, the
# share that chance adds to one of 0.1 is less than 0.01.
ENOUGH = 10_000
# What `reason_of` says.
REASONS = (
    *("missing", "unreadable", "empty", "not an image", "truncated", "corrupt"),
    "too large",
)
# (counts by reason, REASONS) -> their sums over all processes.
Total = Callable[[Mapping[str, int], Sequence[str]], Mapping[str, int]]
# Bad examples that are told one by one.
_TOLD = 20
_HEADER = "reason\tsplit\tindex\tpath\n"
# A name may contain what ends a field or a line.
_ESCAPES = {ord("\\"): r"\\", ord("\t"): r"\t", ord("\n"): r"\n", ord("\r"): r"\r"}


@dataclasses.dataclass(frozen=True)
class BadExample:
    """One that could not be read or decoded.

    index: in its source; path: "" where the source has none; attempt: 0 for the
    example whose turn it was, n for the n-th that was to take its place.
    """

    index: int
    reason: str
    path: str
    attempt: int = 0


def reason_of(error: OSError | BadImage) -> str:
    """Why an image cannot be had: "missing", "unreadable" or what `BadImage` says."""
    if isinstance(error, BadImage):
        return error.reason
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


class BadImages:
    """The account of one split, kept in the main process.

    split: its name; max_fraction: of the examples; path: of the list, a table of
    reason, split, index and path in which an example stands once however often it is
    met, by whichever run in this folder, or None; say: tells a person.
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
        self._told = 0
        self.restart({})

    def restart(self, counts: Mapping[str, int]) -> None:
        """Go on counting from these numbers; what to judge is seen anew."""
        # Places that had a bad example, by its reason.
        self.counts = collections.Counter(counts)
        # Examples that were bad when it was their turn.
        self._bad: dict[int, str] = {}

    def add(self, found: Sequence[BadExample]) -> None:
        """Count, tell and list what the next examples brought to light."""
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
        for bad in new[: _TOLD - self._told]:
            # ASCII: the encoding of a terminal must not be able to end a run.
            name = f"{self._split} example {bad.index} {bad.path!a}".strip()
            self._say(f"bad image, {bad.reason}: {name}")
        if self._told < _TOLD <= self._told + len(new):
            self._say(f"further bad images are not told one by one{self._listed()}")
        self._told = min(_TOLD, self._told + len(new))
        if self._path:
            _append(self._path, self._split, new)

    def metrics(self, name: str) -> dict[str, int]:
        """{"name/reason": number of bad examples} of the reasons that there are."""
        return {f"{name}/{reason}": n for reason, n in self.counts.items()}

    def judge_pass(self, examples: int, total: Total) -> None:
        """ValueError if too many of all examples were bad.

        total: sums up counts over processes, as `counts` has them from here on.
        """
        self.counts = collections.Counter(total(self.counts, REASONS))
        self._check(list(self.counts.elements()), examples)

    def judge(self, examples: int, enough: int = ENOUGH) -> None:
        """ValueError if too many of so many different examples were bad, or all."""
        if self._bad and examples >= enough:
            self._check(self._bad.values(), examples)

    def _check(self, reasons: Collection[str], examples: int) -> None:
        # Rounded up, less what 0.1 * 30 has above 3: one of six images is no share.
        allowed = math.ceil(self._max_fraction * examples - 1e-6)
        bad = len(reasons)
        if bad > allowed or bad == examples:
            raise self.too_many(f"{bad} of {examples} examples", reasons)

    def too_many(self, number: str, reasons: Iterable[str]) -> UserError:
        """The error that ends a run; number: of images, in words."""
        counts = sorted(collections.Counter(reasons).items())
        by_reason = ", ".join(f"{n} {reason}" for reason, n in counts)
        return UserError(
            f"{number} of the {self._split or 'data'} split have no image that can be "
            f"used ({by_reason}){self._listed()}. Expected at most config.data."
            f"max_bad_fraction={self._max_fraction}: repair or remove the files, or "
            "raise it."
        )

    def _listed(self) -> str:
        return f", see {self._path}" if self._path else ""


def _read_list(path: Path, split: str) -> set[int]:
    """Indices in the list; what a crash cut short is cut off."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    rows = [row.split(b"\t") for row in whole.splitlines()[1:]]
    return {int(row[2]) for row in rows if row[1] == split.encode()}


def _append(path: Path, split: str, found: Sequence[BadExample]) -> None:
    # Paths that are not Unicode go back to the bytes that they were.
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if file.tell() == 0:
            file.write(_HEADER)
        for bad in found:
            name = bad.path.translate(_ESCAPES)
            file.write(f"{bad.reason}\t{split}\t{bad.index}\t{name}\n")
