"""Freed memory is reused without page faults, and no more memory is held."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny_config

from simmim_jax.runtime import host_memory, sharding
from simmim_jax.tasks.learners import learner
from simmim_jax.training import compilation

ROOT = Path(__file__).parents[2]
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc"
)
# Prints page faults for all images, which a thread decodes, and for the fourth large
# array of the main thread, where steps are run, and the process's peak memory before
# and after [KB].
FAULTS = """
import contextlib, resource, sys, threading
from pathlib import Path
from simmim_jax.runtime import host_memory

stack = contextlib.ExitStack()
for name in sys.argv[1:]:
    if name == "kept":
        stack.enter_context(host_memory.kept())
    elif name == "left":
        stack.close()
    else:
        host_memory.keep_freed_images()

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

def allocate(sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(size) for size in sizes]
    for block in blocks:
        block[::4096] = bytes(len(block[::4096]))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def decode():
    for _ in range(100):
        allocate(4 * [1_000_000])

before, faults = peak(), []
thread = threading.Thread(target=decode)
thread.start()
thread.join()
for _ in range(4):
    allocate([200_000_000])
print(sum(faults[:100]), faults[-1], before, peak())
"""


# Prints how many of three blocks lie in the main thread's heap: its own, two threads'.
ARENAS = """
import ctypes, threading
from simmim_jax.runtime import host_memory

def allocate():
    blocks.append(libc.malloc(100_000))
    together.wait()

with host_memory.kept():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    blocks, together = [libc.malloc(100_000)], threading.Barrier(2)
    threads = [threading.Thread(target=allocate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = libc.sbrk(0)
    print(sum(block < end for block in blocks))
"""


def run(program, *args, **env):
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLI"))}
    output = subprocess.check_output(
        [sys.executable, "-c", program, *args],
        env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env,
    )
    return [int(number) for number in output.split()]


@glibc
def test_defaults_map_pages_anew():
    images, large, *_ = run(FAULTS)
    assert images > 10_000
    assert large > 80  # huge pages of 2 MB, or more small ones


@glibc
def test_pages_of_images_are_mapped_once():
    images, large, *_ = run(FAULTS, "keep_freed_images")
    assert images < 2000  # 4 MB are 977 pages
    assert large > 80


@glibc
@pytest.mark.parametrize("names", [("kept",), ("kept", "keep_freed_images")])
def test_all_freed_memory_is_kept_and_no_more_is_used(names):
    images, large, before, peak = run(FAULTS, *names)
    assert images < 2000
    assert large < 20
    assert before < 200_000  # JAX is imported
    assert peak < before + 300_000


@glibc
def test_threads_do_not_share_the_heap_of_steps():
    assert run(ARENAS) == [1]


@glibc
def test_leaving_the_context_restores_the_defaults():
    _, large, *_ = run(FAULTS, "kept", "left")
    assert large > 80


@glibc
@pytest.mark.parametrize(
    "env", [{"JAX_PLATFORMS": "cuda,cpu"}, {"MALLOC_ARENA_MAX": "2"}], ids=str
)
def test_other_devices_or_settings_turn_it_off(env):
    assert run(FAULTS, "kept", **env)[1] > 80


@glibc
def test_thresholds_of_the_environment_hold_for_images_too():
    faults = run(FAULTS, "keep_freed_images", MALLOC_TRIM_THRESHOLD_="131072")[0]
    assert faults > 10_000
    assert run(FAULTS, "keep_freed_images", MALLOC_ARENA_MAX="2")[0] < 10_000


# Prints how many addresses the memory of 20 steps has. Nothing is written to it.
STEPS = """
import contextlib, sys
from simmim_jax.runtime import host_memory

stack = contextlib.ExitStack()
stack.enter_context(host_memory.kept())
libc = host_memory._libc()
state = [libc.malloc(20_000_000) for _ in range(50)]
if sys.argv[1:]:
    host_memory.make_room()
addresses, batches = set(), []
for step in range(20):
    block = libc.malloc(1_000_000_000)
    addresses.add(block)
    batches.append(libc.malloc(19_000_000))
    libc.free(block)
    libc.malloc(10_000 * step)
    if len(batches) > 2:
        libc.free(batches.pop(0))
print(len(addresses))
"""
# Frees every other one of many blocks. Prints the memory that give_back_gaps returns
# [KB], and the page faults of a large block that was freed before.
GAPS = """
import contextlib, resource
from pathlib import Path
from simmim_jax.runtime import host_memory

def used():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

def large():
    block = bytearray(200_000_000)
    block[::4096] = bytes(len(block[::4096]))

stack = contextlib.ExitStack()
stack.enter_context(host_memory.kept())
blocks = [bytearray(b"1") * 500_000 for _ in range(400)]
large()
del blocks[::2]
before = used()
host_memory.give_back_gaps()
print(before - used())
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
large()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
def test_steps_reuse_the_same_memory():
    assert run(STEPS, "with room") == [1]
    (addresses,) = run(STEPS)
    assert addresses > 1


@glibc
def test_gaps_are_returned_and_the_end_of_the_heap_stays():
    given_back, faults = run(GAPS)
    assert 60_000 < given_back < 150_000  # of 100 MB
    assert faults < 100


@glibc
@pytest.mark.slow
def test_a_run_holds_the_memory_of_one_step(tmp_path):
    fields = {"data.batch_size": 1024, "model.embed_dim": 64, "duration": "6 steps"}
    fields |= {"eval_every": "4 steps"}
    patches = {"model.patch_size": (4, 4), "mask.unit_size": (4, 4)}
    config = tiny_config.typed("pretrain", **fields, **patches)
    plan = compilation.plan(learner(config, 10_000), sharding.make_mesh())
    of_a_step = plan.lower().compile().memory_analysis().temp_size_in_bytes / 1024

    peak = {}
    with commands.start(
        *commands.tiny("pretrain", tmp_path),
        *(f"--config.{name}={value}" for name, value in (fields | patches).items()),
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        for line in process.stdout:
            # Neither line is the last of the run.
            for moment in ("compiled the training step", "step 6: "):
                if line.startswith(moment):
                    text = status.read_text()
                    peak[moment] = int(text.partition("VmHWM:")[2].split()[0])
    assert process.returncode == 0
    before, after = peak.values()
    assert of_a_step > 100_000
    # Evaluation takes less, and fits beside it.
    assert of_a_step / 2 < after - before < 1.6 * of_a_step


def test_what_jax_may_find(monkeypatch):
    # Importing libtpu, which JAX does where it is installed, sets it.
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert host_memory.one_cpu_device()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [])
    assert host_memory.one_cpu_device()
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [group])
    assert not host_memory.one_cpu_device()
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [])
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert not host_memory.one_cpu_device()
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    assert not host_memory.one_cpu_device()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
    assert not host_memory.one_cpu_device()
