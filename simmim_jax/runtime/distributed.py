"""Several processes, one run: how they find, follow and lose each other.

Each process is a host of a TPU slice, a GPU, or whatever else its launcher starts; all
run the same command. They find each other through JAX's coordination service, which
lives in process 0 and also tells of those that no longer answer.
"""

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

# JAX has no public way to the store of its coordination service; Orbax takes this one.
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simmim_jax.errors import UserError

# Exit status of a process that stops because another one is gone (EX_UNAVAILABLE).
EXIT_LOST = 69
# Where the process that fails first leaves word.
_FAILURE = "simmim_jax/failure"
# For so many seconds the others may come upon the same error by themselves.
_GRACE = 3.0
# Seconds until a file that one process wrote is taken to be invisible to another.
_SHARED_TIMEOUT = 30.0
# Seconds that processes wait for each other; one that is gone is noticed before.
_MEETING_TIMEOUT = 3600.0
_MEETINGS = itertools.count()  # each barrier has a name of its own
# Set where this process ends for an error of its own.
_failing = threading.Event()


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
    """Joins the other processes of the run, before JAX touches any device.

    mode: "auto" joins those that a launcher tells of (Cloud TPU, Slurm, Open MPI,
    Kubernetes) or the other arguments name, and else runs alone; "on" insists on it;
    "off" runs alone. Timeouts in seconds: until all have joined, and until one that is
    silent is given up. returns: whether there are others. raises: ValueError where what
    is needed is neither told nor found. Ends the process with EXIT_LOST where others do
    not come.
    """
    told = (coordinator_address, num_processes, process_id)
    if mode == "off" or (
        mode == "auto" and told == (None, None, None) and runs_alone(os.environ)
    ):
        return False
    if told != (None, None, None) and (None in told or ":" not in str(told[0])):
        raise UserError(
            f"--coordinator_address={told[0]}, --num_processes={told[1]}, --process_id="
            f"{told[2]}: expected all three, such as 10.0.0.1:8476, 4, and 0 to 3."
        )
    # Signals are caught and agreed upon here, in `AnyProcess`.
    jax.config.update("jax_enable_preemption_service", False)
    where = f" at {coordinator_address}" if coordinator_address else ""
    # JAX would abort with a stack trace; this comes before.
    timer = threading.Timer(
        initialization_timeout,
        _exit,
        (
            EXIT_LOST,
            f"not all processes met{where} within {initialization_timeout} s. Expected "
            "the same command on every host, process 0 on that of the coordinator, its "
            "port open to the others, and a process_id of its own for each "
            "(--initialization_timeout waits longer).",
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *told,
            initialization_timeout=initialization_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        if mode == "auto" and "coordinator_address should be" in str(error):
            return False  # no launcher that JAX knows
        raise UserError(
            f"cannot tell which processes belong to the run: {error} Expected "
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=0 to "
            "N-1, or a launcher that JAX knows, or --distributed=off."
        ) from error
    finally:
        timer.cancel()
    over = threading.Event()
    heed = threading.Thread(target=_heed_failures, args=(over,), daemon=True)
    heed.start()
    # Before JAX leaves the service, which happens at exit, too.
    atexit.register(heed.join)
    atexit.register(over.set)
    return True


def runs_alone(env: Mapping[str, str]) -> bool:
    """Whether the environment tells of a launcher that started this process alone.

    JAX would take part of the GPUs there, or wait for others that do not exist.
    """
    if "SLURM_STEP_NODELIST" in env:
        return int(env.get("SLURM_NTASKS", "1")) == 1
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," not in hosts and int(env.get("MEGASCALE_NUM_SLICES", "1")) == 1
    # A pod that is not of an indexed Job: a notebook, for one.
    return "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" not in env


def describe() -> str:
    """Which process this is, and its part of the devices."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})"
    )


def check_shared(folder: Path) -> None:
    """ValueError where processes see different folders; they wait for each other."""
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


# ---- What all know -------------------------------------------------------------------


def meet() -> None:
    """Waits until all processes are here, without their devices.

    For what takes each of them another time, such as compiling: collectives give up
    on a process that lags by two minutes.
    """
    if jax.process_count() > 1:
        client: Any = global_state.client
        milliseconds = round(1000 * _MEETING_TIMEOUT)
        client.wait_at_barrier(f"simmim_jax/{next(_MEETINGS)}", milliseconds)


class AnyProcess:
    """Whether any process says yes, told to all of them at the same step.

    An answer comes one step late, by a maximum over all devices that runs between
    steps: the host waits for no step that it would not have waited for anyway.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.array(jax.devices()), "all")
        self._parts = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda said: said.any(), out_shardings=whole)
        self._answer: jax.Array | None = None

    def ask(self, says: bool) -> bool:
        """To be called by all processes once a step, before it is started."""
        if jax.process_count() == 1:
            return says
        said = np.full(jax.local_device_count(), says)
        asked = jax.make_array_from_process_local_data(self._parts, said)
        answer, self._answer = self._answer, self._any(asked)
        return answer is not None and bool(jax.device_get(answer))


def total(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Sums over all processes of the counts with these names, without zeros."""
    if jax.process_count() == 1:
        return dict(counts)
    ours = np.array([counts.get(name, 0) for name in names], np.int32)
    sums = multihost_utils.process_allgather(ours).sum(0)
    return {name: int(n) for name, n in zip(names, sums, strict=True) if n}


# ---- The end -------------------------------------------------------------------------


def fail(text: str, status: int) -> NoReturn:
    """Ends this process, and with word of it the others, which would wait for it.

    Without the usual end, in which JAX waits for all of them.
    """
    if status != EXIT_LOST:
        _failing.set()
    client: Any = global_state.client
    said = f"process {jax.process_index()}: {text.strip().splitlines()[-1]}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # one left word before us
        client.key_value_set(_FAILURE, f"{status} {said}")
    print(text, file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(_GRACE + 2)  # so that the others can still read it
    _exit(status)


def _heed_failures(over: threading.Event) -> None:
    """Ends this process where another one left word that it failed, and as it ended.

    An error that a new start meets again would else look like one that it mends.
    """
    client: Any = global_state.client
    while not over.wait(1.0):
        try:
            status, _, said = client.key_value_try_get(_FAILURE).partition(" ")
        except jax.errors.JaxRuntimeError:
            continue  # no word
        if said.startswith(f"process {jax.process_index()}: "):
            return  # it is ours
        time.sleep(_GRACE)
        if _failing.is_set():
            return  # of the same, most likely: it says so itself
        _exit(int(status), f"stopped, because another process failed. {said}")


def _exit(status: int, text: str = "") -> NoReturn:
    if text:
        print(f"\n{text}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
