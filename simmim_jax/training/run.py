"""A training run: everything that the loop needs, built once by a task."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from simmim_jax.data.loader.pipeline import TrainIterator
from simmim_jax.training import optim, steps

# (params, step) -> metrics of held-out data; may draw a picture.
Evaluate = Callable[[Any, int], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns, and how: all that a training step is made of."""

    # key -> params. Pure: runs under jit, straight onto the mesh.
    init: Callable[[jax.Array], Any]
    prepare: steps.Prepare
    loss: steps.Loss
    # The same without rematerialisation: its products count in a utilisation.
    plain_loss: steps.Loss
    # Shape and dtype of each array of a global batch.
    batch: Mapping[str, jax.ShapeDtypeStruct]
    # Parameters or their shapes -> learning rate and optimiser of those that learn.
    optimizer: Callable[[Any], tuple[optim.Schedule, optax.GradientTransformation]]
    seed: int
    # Top-level names of parameters that do not learn.
    frozen: tuple[str, ...] = ()
    # Micro-batches of a batch.
    accumulation: int = 1
    # Consecutive images that are mixed, and so have to be on one device; 0: any may.
    mix_group: int = 0
    # Decay of the moving average of the parameters; 0: there is none.
    ema_decay: float = 0.0

    @property
    def batch_size(self) -> int:
        """Examples of a global batch."""
        return next(iter(self.batch.values())).shape[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of a run [steps of its batch size], and where it resumes.

    Steps are numbered through all starts of a run, but lengths, intervals and schedules
    count examples: they go by `clock`, the steps that a run of this batch size would
    have taken to see as many. Both are the same until the batch size changes.
    """

    duration: int
    # 0: after the last step alone.
    log_every: int
    eval_every: int
    checkpoint_every: int
    probe_every: int = 0
    # Where the run resumes: the step's number, and the whole batches seen until then.
    start: int = 0
    seen: int = 0

    @property
    def total(self) -> int:
        """Number of the last step."""
        return self.start + max(self.duration - self.seen, 0)

    def clock(self, step: int) -> int:
        """Return the batches of the present size that the run has seen after `step`."""
        return self.seen + step - self.start

    def is_due(self, interval: int, step: int) -> bool:
        """Whether something with this interval happens after `step`."""
        is_multiple = bool(interval) and self.clock(step) % interval == 0
        return step == self.total or is_multiple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; tasks build it, `loop.train` carries it out."""

    title: str
    workdir: Path
    learner: Learner
    mesh: Mesh
    lengths: Lengths
    # Data set in a line, for the log.
    description: str
    # Opens the stream of training batches.
    stream: Callable[[], TrainIterator]
    evaluate: Evaluate
    # Further metrics of held-out data, at intervals of their own; None: none.
    probe: Evaluate | None = None
    # Metric of `evaluate` that the best checkpoint is chosen by: "min" or "max" of it.
    best: str
    mode: str
    # Config and data set, as checkpoints and config.json record them.
    record: dict[str, Any]
    # Examples seen -> how the config differs from the last start, and what follows.
    # raises: UserError where a resumed run may not differ so.
    changes: Callable[[int], list[str]]
    # What to know of the config before it trains.
    notices: tuple[str, ...] = ()
    # Metrics that no step changes, for a line at the start of a new run.
    constants: Callable[[], dict[str, float]] = dict
    # Draws what the model sees at the start of a new run.
    preview: Callable[[], Path] | None = None
    # Replaces fresh parameters at the start of a new run.
    restore: Callable[[Any], Any] | None = None
    # Where `evaluate` draws at a step.
    picture: Callable[[int], Path] | None = None
    keep_checkpoints: int = 3
    wandb: bool = False
    # First step and number of steps that are traced.
    profile: tuple[int, int] = (0, 0)

    def resumed(self, step: int, examples_seen: int) -> "Run":
        """Return the run as it resumes from a checkpoint; examples_seen: until then."""
        seen = examples_seen // self.learner.batch_size
        lengths = dataclasses.replace(self.lengths, start=step, seen=seen)
        return dataclasses.replace(self, lengths=lengths)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a finished run leaves."""

    # Moving averages where the run has them.
    params: Any = dataclasses.field(repr=False)
    step: int
    last: dict[str, float]  # metrics of the last evaluation
    best: int  # step of the best checkpoint
