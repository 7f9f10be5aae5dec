"""Sound files with what is said in them, or parts of them."""

import dataclasses
import os
from typing import Any

import numpy as np

from simmim_jax.data.codecs.audio import Segment
from simmim_jax.data.sources.folders import FolderSource
from simmim_jax.data.sources.remote import is_url
from simmim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RecordingSource:
    """Sound files, or segments of them; examples have a "text" if one is known.

    files: with their labels; texts: "" where none is known; spans: float64 [n 2],
    start and end of each [seconds], 0 and inf for a whole file.
    """

    files: FolderSource
    texts: tuple[str, ...] = dataclasses.field(repr=False)
    spans: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        start, end = self.spans[index].tolist()
        if (start, end) == (0, np.inf):
            example = self.files[index]
        else:
            example = self._segment(index, start, end)
        text = self.texts[index]
        return example | {"text": text} if text else example

    def _segment(self, index: int, start: float, end: float) -> dict[str, Any]:
        path = self.paths[index]
        if is_url(path) or is_url(self.files.root):
            raise UserError(
                f"{path!r} is at a URL: expected a local file, of which a part from "
                "start to end is read. Copy it here."
            )
        path = os.path.join(self.files.root, path)
        label = -1 if self.labels is None else int(self.labels[index])
        return {"image": Segment(path, start, end), "label": label, "path": path}

    @property
    def paths(self) -> Any:
        """The file of each example."""
        return self.files.paths

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label, empty if unlabelled."""
        return self.files.class_names

    @property
    def labels(self) -> np.ndarray | None:
        """int [n], -1 for examples without a label; None if none has one."""
        return self.files.labels

    @property
    def unlabelled(self) -> str:
        """Why there are no labels, if that may be a mistake."""
        return self.files.unlabelled
