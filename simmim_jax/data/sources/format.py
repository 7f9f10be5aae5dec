"""What a format is: one way in which data sets are stored."""

import dataclasses
from collections.abc import Callable

from simmim_jax.data.sources.base import Source


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which data sets are stored.

    A `place` is what the user names: a path with ~ expanded, a URL, or PREFIX:NAME.

    name: what errors list as expected, such as "a .tar or .zip of images";
    matches(place): whether a data set has this format, by its name and what is there;
    check(place, split): raises what `open` would raise if there is no data, in
    milliseconds and without heavy imports;
    open(place, split): returns one split as a source, and raises UserError;
    prefix: of names such as "tfds:NAME", for suggestions after a typo;
    takes_data_dir: whether `check` and `open` also take `data_dir`;
    takes_max_bytes: whether `open` also takes `max_bytes` of an image's file;
    takes_wanted: whether `open` also takes `wanted`, the targets that a run learns.
    """

    name: str
    matches: Callable[[str], bool]
    check: Callable[..., object]
    open: Callable[..., Source]
    prefix: str = ""
    takes_data_dir: bool = False
    takes_max_bytes: bool = False
    takes_wanted: bool = False
