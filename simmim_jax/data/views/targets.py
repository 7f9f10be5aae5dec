"""A view whose rows have targets beside the label."""

import dataclasses
from typing import Any

import numpy as np

from simmim_jax.data.views.base import Spec, View


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetView(View):
    """Another view and "target", float32 [num_targets], NaN where one is not known."""

    view: View
    num_targets: int

    @property
    def spec(self) -> dict[str, Spec]:
        """The arrays of the view, and "target"."""
        target = Spec((self.num_targets,), np.dtype(np.float32))
        return self.view.spec | {"target": target}

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return what the view does, with the target of the example."""
        return {**self.view(example, rng), "target": example["target"]}
