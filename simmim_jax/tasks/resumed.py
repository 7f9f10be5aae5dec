"""Whether a run in a workdir is the same one, and what changed in its config."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from simmim_jax.checkpoints import layout
from simmim_jax.checkpoints.record import config_changes
from simmim_jax.config import durations, schema
from simmim_jax.config.schema import RunConfig
from simmim_jax.errors import UserError
from simmim_jax.tasks.optimizer import learning_rate

# Fields that change what the parameters are, or what they have learned to predict.
_MODEL = ("decoder.", "loss", "model.", "target")
# Fields that decide which arrays a state has by being 0 or False, or not.
_KINDS = ("ema_decay", "freeze_encoder")


def changes_of(
    workdir: Path,
    config: RunConfig,
    record: Mapping[str, Any],
    num_examples: int,
) -> Callable[[int], list[str]]:
    """Return `Run.changes`: how config and encoder differ from the last start.

    It raises UserError where the mode, the model or the kind of its state changed, or
    where the run is finished, so that other changes of what it learns would have no
    effect. num_examples: of an epoch.
    """

    def changes(examples_seen: int) -> list[str]:
        begun = layout.read_record(workdir)
        # A field that did not exist then had what is its default now.
        old = schema.single(schema.parse(begun["config"], stored=True))
        if old.mode != config.mode:
            raise UserError(
                f"'{workdir}' holds a run with config.mode={old.mode!r}, and this "
                f"config has {config.mode!r}: choose another --workdir."
            )
        before = schema.to_dict(old)
        changed = config_changes(
            before | {"encoder": begun.get("restored_from")},
            schema.to_dict(config) | {"encoder": record.get("restored_from")},
        )
        said = {name: f"{name} {change}" for name, change in changed.items()}
        try:
            effects = consequences(old, config, num_examples, examples_seen)
        except (ArithmeticError, TypeError) as error:  # `old` is not checked
            raise UserError(
                f"'{workdir / 'config.json'}' has values that no run had ({error}). "
                "Copy it from meta/metadata of the newest checkpoint."
            ) from error
        finished = not _steps_left(config, num_examples, examples_seen)
        learned = [name for name in changed if name not in schema.harmless(config)]
        state = [
            name
            for name in learned
            if name.startswith(_MODEL)
            or (name in _KINDS and bool(before[name]) != bool(getattr(config, name)))
        ]
        if state:
            raise UserError(
                f"'{workdir}' holds a run of another config: within a run these fields "
                "may not change. Choose another --workdir, or resume with what it had:"
                + _listed(said, state, effects)
            )
        if finished and learned:
            raise UserError(
                f"'{workdir}' holds a finished run, which has seen {examples_seen:,} "
                f"examples, and config.duration={config.duration!r} ends there or "
                "earlier: these changes would have no effect. A larger config.duration "
                "trains on; choose another --workdir to begin anew:"
                + _listed(said, learned, effects)
            )
        return [*said.values(), *effects]

    return changes


def _listed(
    said: Mapping[str, str], blocking: Collection[str], effects: Collection[str]
) -> str:
    """Return the changes on a line each: those that block first, harmless ones last."""
    others = [text for name, text in said.items() if name not in blocking]
    lines = [*(said[name] for name in blocking), *effects]
    if others:
        lines += ["changed, too:", *others]
    return "".join(f"\n  {line}" for line in lines)


def consequences(
    old: RunConfig,
    new: RunConfig,
    num_examples: int,
    examples_seen: int,
) -> list[str]:
    """Return what another config means for learning rate, steps left and lengths.

    num_examples: of an epoch.
    """
    at = num_examples, examples_seen
    was, now = old.data.batch_size, new.data.batch_size
    scales = " scales with the batch:" if was != now else ""
    left_was, left_now = (_steps_left(config, *at) for config in (old, new))
    rate_was, rate_now = (f"{_next_rate(c, *at):.2e}" for c in (old, new))
    effects = []
    if left_now and rate_was != rate_now:
        effects.append(f"learning rate{scales} {rate_was} -> {rate_now}")
    if left_was != left_now:
        effects.append(f"steps left {left_was:,} -> {left_now:,}")
    said = [", ".join(effects)] if effects else []
    if was != now:
        said = [f"batch size {was:,} -> {now:,}: {text}" for text in said]
        said += _other_lengths(old, new)
    return said


def _other_lengths(old: RunConfig, new: RunConfig) -> Iterator[str]:
    """Yield which lengths in steps mean another number of examples than before."""
    was, now = old.data.batch_size, new.data.batch_size
    before = _lengths(old)
    for name, length in _lengths(new).items():
        steps, unit = durations.parse(length)
        if unit == "steps" and steps and before.get(name) == length:
            yield (
                f"{name} {length!r}: {steps * was:,.0f} -> {steps * now:,.0f} "
                f"examples; {durations.scaled(length, was / now)!r} keeps it as it was"
            )


def _next_rate(config: RunConfig, num_examples: int, examples_seen: int) -> float:
    """Return the learning rate of the next step, or of the last one if none is left."""
    last = schema.num_steps(config, "duration", num_examples) - 1
    step = min(examples_seen // config.data.batch_size, last)
    return float(learning_rate(config, num_examples)(step, 1.0))


def _steps_left(config: RunConfig, num_examples: int, examples_seen: int) -> int:
    total = schema.num_steps(config, "duration", num_examples)
    return max(total - examples_seen // config.data.batch_size, 0)


def _lengths(config: RunConfig) -> dict[str, str]:
    """Return the durations that decide how a run learns."""
    milestones = config.optim.milestones
    return {
        "duration": config.duration,
        "optim.warmup": config.optim.warmup,
        **{f"optim.milestones[{i}]": m for i, m in enumerate(milestones)},
    }
