"""The one training loop: restore, step, log, save, evaluate.

Order within a step, which resuming relies on: update, log, save, evaluate. A checkpoint
of step n holds the parameters after n updates and the input's position after n batches;
the training metrics of step n are on disk before it. Its evaluation follows and rates
it. A run that stops in between evaluates first when it is resumed, so that its metrics
and its best checkpoint are those of an uninterrupted run.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from simmim_jax.checkpoints import disk
from simmim_jax.checkpoints.record import describe_software
from simmim_jax.checkpoints.store import TO_BE_RATED, Checkpointer, size_of
from simmim_jax.data.loader.bad_examples import REASONS
from simmim_jax.data.loader.pipeline import TrainIterator
from simmim_jax.errors import Interrupted
from simmim_jax.monitoring.profile import Profile
from simmim_jax.monitoring.writer import MetricWriter, write_json
from simmim_jax.runtime import distributed, host_memory, interrupt, sharding
from simmim_jax.runtime.distributed import AnyProcess
from simmim_jax.runtime.interrupt import Signals
from simmim_jax.training import compilation, inputs, resume, steps
from simmim_jax.training.compilation import Plan
from simmim_jax.training.run import Run, Trained
from simmim_jax.training.step_log import StepLog
from simmim_jax.training.steps import TrainState

StepFn = Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]


def train(run: Run) -> Trained:
    """Train until the run is finished, from the last checkpoint in its workdir.

    raises: NonFiniteError when a loss or gradient is not finite; Interrupted after
    SIGTERM or SIGINT, once there is a checkpoint to resume from.
    """
    begin = time.perf_counter()
    plan = compilation.plan(run.learner, run.mesh)
    with contextlib.ExitStack() as stack:
        size = size_of(plan.state)
        stack.enter_context(disk.explained(run.workdir, size))
        signals = stack.enter_context(interrupt.catching())
        checkpoints = stack.enter_context(
            Checkpointer(
                run.workdir, keep=run.keep_checkpoints, best=run.best, mode=run.mode
            )
        )
        stream = stack.enter_context(contextlib.closing(run.stream()))
        start = checkpoints.last_step() or 0
        seen = checkpoints.examples_seen(start) if start else 0
        run = run.resumed(start, seen)
        total = run.lengths.total
        # Without a checkpoint a signal ends the process at once, as by default.
        if start:
            signals.listen()
        is_evaluated = checkpoints.is_rated(start) or not (
            checkpoints.is_to_be_rated(start) or _evaluates(run, start)
        )
        writer = stack.enter_context(
            MetricWriter(
                run.workdir,
                total_steps=total,
                resume_step=start,
                evaluated=is_evaluated,
                title=run.title,
                wandb=run.wandb,
                is_main=jax.process_index() == 0,
            )
        )
        for line in (run.description, *run.notices):
            writer.message(line)
        if start:
            state = _resumed(run, plan, checkpoints, seen, stream, writer)
        else:
            state = _fresh(run, plan, writer)
        meta = run.record | describe_software()
        if jax.process_index() == 0:
            write_json(run.workdir / "config.json", meta)
        rate = functools.partial(_rate, plan, run)
        log = StepLog(writer, rate, checkpoints, run.learner.batch_size, start, begin)
        if not is_evaluated:
            _evaluate(run, log, state, start)
            checkpoints.wait()
        if start < total:
            if jax.process_index() == 0:
                writer.message(disk.check(run.workdir, size, run.keep_checkpoints))
            step_fn = _compile(run, plan, log)
            profile = stack.enter_context(
                contextlib.closing(_profile(run, total - start, writer))
            )
            loop = _Loop(run, step_fn, checkpoints, log, profile, meta, signals)
            batches = inputs.batches_on_devices(stream, run.mesh)
            state = loop.run(state, batches, range(start + 1, total + 1))
        best = checkpoints.best_step() or total
        writer.message(f"best at step {best}: {_text(checkpoints.metrics(best))}")
        return Trained(state.averaged, total, checkpoints.metrics(total), best)


# ---- Before the first step -----------------------------------------------------------


def _resumed(
    run: Run,
    plan: Plan,
    checkpoints: Checkpointer,
    seen: int,
    stream: TrainIterator,
    writer: MetricWriter,
) -> TrainState:
    """Return the state of the checkpoint that the run resumes from.

    seen: training examples until then.
    """
    for change in run.changes(seen):
        writer.message(change)
    state = resume.restore(checkpoints, run.lengths, plan.state, stream)
    writer.message(
        f"resumed at step {run.lengths.start} of {run.lengths.total}"
        if run.lengths.start < run.lengths.total
        else f"finished before, at step {run.lengths.total}: a larger config.duration "
        "trains on, another workdir begins anew"
    )
    return state


def _fresh(run: Run, plan: Plan, writer: MetricWriter) -> TrainState:
    """Return the state before the first step: fresh, or with a restored encoder."""
    if constants := run.constants():
        writer.write(0, constants)
        writer.message(_text(constants))
    if run.preview and jax.process_index() == 0:
        writer.picture(0, "augmented", run.preview())
    key = jax.random.key(run.learner.seed)
    init = jax.jit(run.learner.init, out_shardings=plan.shardings.params)
    params = init(key)
    if run.restore:
        params = sharding.laid_out(run.restore(params), plan.shardings.params)
    fresh_state = jax.jit(
        plan.fresh_state, out_shardings=plan.shardings, donate_argnums=0
    )
    return fresh_state(params)


def _compile(run: Run, plan: Plan, log: StepLog) -> StepFn:
    """Return the step; tells the log what it costs."""
    log.writer.message("compiling the training step ...")
    before = time.perf_counter()
    lowered = plan.lower()
    # XLA releases the interpreter lock: operations are counted meanwhile.
    with ThreadPoolExecutor(1) as pool:
        flops = pool.submit(compilation.flops_per_image, run.learner)
        step_fn = lowered.compile()
    distributed.meet()
    host_memory.make_room()
    seconds = time.perf_counter() - before
    log.writer.message(f"compiled the training step in {seconds:.1f} s")
    log.compiled(flops.result(), seconds)
    return step_fn


def _rate(plan: Plan, run: Run, step: int) -> float:
    """Return the learning rate of the update that makes `step`."""
    return float(plan.schedule(run.lengths.clock(step - 1), 1.0))


def _profile(run: Run, steps_left: int, writer: MetricWriter) -> Profile:
    """Return the trace of the run's steps; warns where it would never begin."""
    first, count = run.profile
    if count and first >= steps_left:
        writer.message(
            f"no profile: of the {steps_left} steps left, none comes after "
            f"config.profile.start_step={first}"
        )
    return Profile(run.workdir, start_step=first, num_steps=count)


# ---- Steps ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What all steps of a run share."""

    of: Run
    step_fn: StepFn
    checkpoints: Checkpointer
    log: StepLog
    profile: Profile
    meta: dict[str, Any]
    signals: Signals

    def run(
        self,
        state: TrainState,
        batches: Iterator[tuple[steps.Batch, dict[str, Any]]],
        span: range,
    ) -> TrainState:
        """Update, log, save and evaluate, in this order, for every step of `span`."""
        lengths, asked = self.of.lengths, AnyProcess()
        self.signals.listen()
        with self.signals.postponed() as received:
            for step in span:
                stops = asked.ask(bool(received))
                state, metrics, position = self._update(state, batches, step)
                evaluates = _evaluates(self.of, step)
                saves = (
                    evaluates or stops or lengths.is_due(lengths.checkpoint_every, step)
                )
                due = saves or lengths.is_due(lengths.log_every, step)
                self._log(step, metrics, position, due)
                if not saves:
                    continue
                self.log.finish()
                self._save(state, step, position, evaluates)
                if stops:
                    self.checkpoints.wait()
                    name = received[0] if received else "a signal to another process"
                    raise Interrupted(
                        f"{name} at step {step} of {lengths.total}: a checkpoint is "
                        "saved, the same command resumes from it.",
                        agreed=True,
                    )
                if evaluates:
                    with self.signals.at_once(finish=self.checkpoints.finish):
                        _evaluate(self.of, self.log, state, step)
                if step == lengths.total:
                    self.checkpoints.wait()
                host_memory.give_back_gaps()
                self.log.restart_clock()
        return state

    def _update(
        self,
        state: TrainState,
        batches: Iterator[tuple[steps.Batch, dict[str, Any]]],
        step: int,
    ) -> tuple[TrainState, steps.Metrics, dict[str, Any]]:
        """Start one step; returns its metrics and the input's position after it."""
        with self.log.timer.waiting():
            batch, position = next(batches)
        sharding.await_on_cpus((state, batch))
        # The guard: nothing else may pass between host and device and block the step.
        with self.profile.step(step), jax.transfer_guard("disallow"):
            state, metrics = self.step_fn(state, batch)
        return state, metrics, position

    def _log(
        self, step: int, metrics: steps.Metrics, position: dict[str, Any], due: bool
    ) -> None:
        if due:
            position["bad_images"] = distributed.total(position["bad_images"], REASONS)
        with jax.transfer_guard("disallow"):
            self.log.add(step, metrics, due, position["bad_images"])
        if done := self.profile.after(metrics):
            self.log.writer.message(done)

    def _save(
        self,
        state: TrainState,
        step: int,
        position: dict[str, Any],
        evaluates: bool,
    ) -> None:
        before = time.perf_counter()
        self.checkpoints.save(
            step,
            params=state.averaged,
            optimizer=resume.optimizer_item(state),
            data=position,
            meta=self.meta | {"step": step, TO_BE_RATED: evaluates},
        )
        self.log.note("checkpoint_seconds", time.perf_counter() - before)


def _evaluates(run: Run, step: int) -> bool:
    """Whether a run evaluates after `step`; never before the first one."""
    is_due = run.lengths.is_due(run.lengths.eval_every, step)
    return step > 0 and (is_due or _probes(run, step))


def _probes(run: Run, step: int) -> bool:
    """Whether the evaluation after `step` has the metrics of a probe, too."""
    return bool(run.probe) and run.lengths.is_due(run.lengths.probe_every, step)


def _evaluate(run: Run, log: StepLog, state: TrainState, step: int) -> None:
    """Evaluate a saved step; its checkpoint is rated once all else is on disk."""
    held_out = run.evaluate(state.averaged, step)
    if run.probe and _probes(run, step):
        held_out |= run.probe(state.averaged, step)
    log.check(step, held_out)
    log.writer.write(step, held_out)
    log.writer.message(f"step {step}: {_text(held_out)}")
    if run.picture:
        log.writer.picture(step, "held out", run.picture(step))
    log.checkpoints.rate(step, held_out)


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"
        for name, value in metrics.items()
    )
