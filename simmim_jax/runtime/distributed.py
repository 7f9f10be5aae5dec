"""Runs of several processes: start, agreement and failure.

A process is a host of a TPU slice, a GPU or whatever its launcher starts; all run the
same command. JAX's coordination service, which runs in process 0, connects them and
detects processes that no longer respond.

Barriers and collectives are those of Orbax and JAX. Two things have no public
equivalent:

- The reason of a failure reaches the other processes through the coordination service's
  key-value store (`_store`). Barriers carry no text, and a file in the shared workdir
  would come too late where a mounted bucket caches metadata for a minute.
- `AnyProcess` agrees on the step at which a signal stops the run. JAX's preemption
  service (`orbax.checkpoint.multihost.reached_preemption`) was tried: it ignores
  Ctrl-C, and it swallows SIGTERM where no steps are taken, so compilation runs to its
  end and a benchmark never stops.
"""

import atexit
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from simmim_jax.errors import UserError

# Exit status of a process that stops because another one is lost (EX_UNAVAILABLE).
EXIT_LOST = 69
# Key under which the first process to fail stores the reason.
_FAILURE = "simmim_jax/failure"
# Time for the other processes to hit the same error themselves [seconds].
_GRACE = 3.0
# Time until a file of one process must be visible to the others [seconds].
_SHARED_TIMEOUT = 30.0
# Timeout of barriers [seconds]. A lost process is detected earlier, by its heartbeat.
_BARRIER_TIMEOUT = 3600.0
_BARRIERS = itertools.count()  # each barrier needs a unique key
# Set when this process ends because of its own error.
_failing = threading.Event()
# XLA's status codes of a collective that failed; of a process's own errors, such as
# INVALID_ARGUMENT, the text begins with others.
_COLLECTIVE_ERRORS = tuple(
    f"{code}: "
    for code in ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNKNOWN")
)
# Called before a process ends without its exit handlers.
before_exit: list[Callable[[], object]] = []


# ---- Start ---------------------------------------------------------------------------


def start(
    mode: str = "auto",
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> bool:
    """Join the other processes of the run; call it before JAX initialises devices.

    mode: "auto" joins if a launcher (Cloud TPU, Slurm, Open MPI, Kubernetes) or the
    other arguments announce more processes; "on" requires them; "off" runs alone.
    initialization_timeout: until all processes have joined [seconds].
    heartbeat_timeout: until a silent process counts as lost [seconds].
    returns: whether there are other processes.
    raises: UserError if the processes of the run cannot be determined. Ends the process
    with EXIT_LOST if the others do not join in time.
    """
    address = (coordinator_address, num_processes, process_id)
    given = [value is not None for value in address]
    if mode == "off" or (mode == "auto" and not any(given) and runs_alone(os.environ)):
        return False
    if any(given) and not (all(given) and ":" in str(coordinator_address)):
        raise UserError(
            f"--coordinator_address={coordinator_address}, --num_processes="
            f"{num_processes}, --process_id={process_id}: expected all three, such as "
            "10.0.0.1:8476, 4, and 0 to 3."
        )
    # `AnyProcess` handles signals.
    jax.config.update("jax_enable_preemption_service", False)
    where = f" at {coordinator_address}" if coordinator_address else ""
    # JAX's own timeout aborts with a stack trace, so this one fires first.
    timer = threading.Timer(
        initialization_timeout,
        _exit,
        (
            EXIT_LOST,
            f"not all processes joined{where} within {initialization_timeout} s. "
            "Expected the same command on every host, process 0 on the coordinator's, "
            "its port open to the others, and a different process_id for each "
            "(--initialization_timeout waits longer).",
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *address,
            initialization_timeout=initialization_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        if mode == "auto" and "coordinator_address should be" in str(error):
            return False  # no launcher that JAX knows
        raise UserError(
            f"cannot determine the processes of the run: {error} Expected "
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=0 to "
            "N-1, or a launcher that JAX knows, or --distributed=off."
        ) from error
    finally:
        timer.cancel()
    done = threading.Event()
    watcher = threading.Thread(target=_watch_failures, args=(done,), daemon=True)
    watcher.start()
    # Exit handlers run in reverse order: these come before JAX's, which disconnects.
    atexit.register(watcher.join)
    atexit.register(done.set)
    return True


def runs_alone(env: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process alone.

    In that case JAX would use only some of the GPUs, or wait for missing processes.
    """
    if "SLURM_STEP_NODELIST" in env:
        return int(env.get("SLURM_NTASKS", "1")) == 1
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," not in hosts and int(env.get("MEGASCALE_NUM_SLICES", "1")) == 1
    # A pod outside an indexed Job, such as a notebook.
    return "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" not in env


def describe() -> str:
    """Return this process's index and its share of the devices, for the log."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})"
    )


def check_shared(folder: Path) -> None:
    """Raise UserError unless all processes see the same folder. A collective."""
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    file = folder / f".shared-{token}"
    if jax.process_index() == 0:
        file.touch()
    end = time.monotonic() + _SHARED_TIMEOUT
    while not (seen := file.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    all_see = multihost_utils.process_allgather(np.array(seen))
    if jax.process_index() == 0:
        file.unlink()
    if not all_see.all():
        raise UserError(
            f"--workdir={folder} is not the same folder for all processes: "
            f"{np.flatnonzero(~all_see).tolist()} do not see what process 0 writes "
            "there. Expected a file system that all hosts share, such as NFS, "
            "Filestore, Lustre or a mounted bucket."
        )


# ---- Agreement -----------------------------------------------------------------------


def meet() -> None:
    """Wait for all processes, without a collective on devices.

    For work whose time differs between processes, such as compilation: collectives give
    up on a process that is two minutes late.
    """
    barrier = multihost.get_barrier_sync_fn()
    key = f"simmim_jax/{next(_BARRIERS)}"
    barrier(key=key, timeout_ms=round(1000 * _BARRIER_TIMEOUT))


class AnyProcess:
    """Whether any process says yes, known to all of them at the same step.

    The answer is one step late. It comes from an all-reduce that runs between steps, so
    the host never waits for a step that it would not have waited for anyway.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.array(jax.devices()), "all")
        self._split = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda votes: votes.any(), out_shardings=whole)
        self._answer: jax.Array | None = None

    def ask(self, says: bool) -> bool:
        """Vote before a step; return the result of the previous step's vote.

        All processes call it. One process alone gets its own vote back at once.
        """
        if jax.process_count() == 1:
            return says
        ours = np.full(jax.local_device_count(), says)
        votes = jax.make_array_from_process_local_data(self._split, ours)
        answer, self._answer = self._answer, self._any(votes)
        return answer is not None and bool(jax.device_get(answer))


def total(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Sum the counts of these names over all processes; zeros are left out."""
    if jax.process_count() == 1:
        return dict(counts)
    ours = np.array([counts.get(name, 0) for name in names], np.int32)
    sums = multihost_utils.process_allgather(ours).sum(0)
    return {name: int(n) for name, n in zip(names, sums, strict=True) if n}


def of_first_process(content: Any) -> Any:
    """Return the JSON content of process 0 in all processes. A collective."""
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.resize(text, size)  # of the same shape everywhere
    return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())


# ---- Failure -------------------------------------------------------------------------


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error of this process means that another one is gone.

    A failed collective raises JaxRuntimeError, or ValueError where jit dispatches it,
    and Orbax may raise TimeoutError from either.
    """
    if jax.process_count() == 1:
        return False
    while error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        if str(error).startswith(_COLLECTIVE_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail(text: str, status: int) -> NoReturn:
    """Print `text` and end all processes of the run with `status`.

    Skips JAX's shutdown, which waits for all processes.
    """
    if jax.process_count() == 1:
        _exit(status, text)
    if status != EXIT_LOST:
        _failing.set()
    reason = f"process {jax.process_index()}: {text.strip().splitlines()[-1]}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another failed first
        _store().key_value_set(_FAILURE, f"{status} {reason}")
    print(text, file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(_GRACE + 2)  # the store ends with process 0: let the others read it
    _exit(status)


def _watch_failures(done: threading.Event) -> None:
    """End this process if another one fails, with its exit status.

    Otherwise a permanent error would look transient: a lost process.
    """
    store = _store()
    while not done.wait(1.0):
        try:
            found = store.key_value_try_get(_FAILURE)
        except jax.errors.JaxRuntimeError:
            continue  # no failure
        status, _, reason = found.partition(" ")
        if reason.startswith(f"process {jax.process_index()}: "):
            return
        time.sleep(_GRACE)
        if _failing.is_set():
            return  # most likely the same error: this process reports it itself
        did = "failed" if int(status) in (1, EXIT_LOST) else "was stopped"
        _exit(int(status), f"stopped, because another process {did}. {reason}")


def _store() -> Any:
    """Return the client of the coordination service's key-value store."""
    # JAX offers no public access; Orbax reaches it in this way, too.
    from jax._src.distributed import global_state

    return global_state.client


def _exit(status: int, text: str = "") -> NoReturn:
    if text:
        print(f"\n{text}", file=sys.stderr)
    for call in before_exit:
        call()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
