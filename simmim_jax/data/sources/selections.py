"""What to read of a file or folder: the part behind the last colon of PATH:WHAT."""

import os

from simmim_jax.data.sources.remote import is_url


def split_selection(place: str) -> tuple[str, str]:
    """Return the path and the selection of a place; "" selects what is usual.

    A path that exists is a path, even if it has a colon.
    """
    path, colon, what = place.rpartition(":")
    if not colon or is_url(place) or os.path.exists(place) or not os.path.exists(path):
        return place, ""
    return path, what
