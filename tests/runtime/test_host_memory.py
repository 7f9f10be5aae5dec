"""Memory that is freed is there when it is wanted again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny_config

from simmim_jax.runtime import host_memory, sharding
from simmim_jax.tasks import pretrain
from simmim_jax.training import compilation

ROOT = Path(__file__).parents[2]
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc"
)
# Pages that a thread had to fetch: for images at any time, for a fourth large array.
# And the most memory that the process held, in kilobytes, before and after.
FAULTS = """
import resource, sys, threading
from pathlib import Path
from simmim_jax import host_memory

for name in sys.argv[1:]:
    getattr(host_memory, name)()

def most():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

def allocate(sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(size) for size in sizes]
    for block in blocks:
        block[::4096] = bytes(len(block[::4096]))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def work():
    for sizes in 100 * [4 * [1_000_000]] + 4 * [[200_000_000]]:
        allocate(sizes)

before, faults = most(), []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(sum(faults[:100]), faults[-1], before, most())
"""


def run(program, *args, **env):
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLI"))}
    output = subprocess.check_output(
        [sys.executable, "-c", program, *args],
        env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env,
    )
    return [int(number) for number in output.split()]


@glibc
def test_by_default_all_is_fetched_anew():
    images, large, *_ = run(FAULTS)
    assert images > 10_000
    assert large > 80  # of 2 MB, or more of 4 KB


@glibc
def test_pages_of_images_are_fetched_once():
    images, large, *_ = run(FAULTS, "keep_freed_images")
    assert images < 2000  # 4 MB are 977 pages
    assert large > 80


@glibc
@pytest.mark.parametrize(
    "names", [("keep_all_freed",), ("keep_all_freed", "keep_freed_images")]
)
def test_all_that_is_freed_is_kept_and_nothing_more_is_used(names):
    images, large, before, most = run(FAULTS, *names)
    assert images < 2000
    assert large < 20
    assert before < 100_000
    assert most < before + 300_000


@glibc
@pytest.mark.parametrize(
    "env", [{"JAX_PLATFORMS": "cuda,cpu"}, {"MALLOC_ARENA_MAX": "2"}], ids=str
)
def test_with_other_devices_or_settings_nothing_changes(env):
    assert run(FAULTS, "keep_all_freed", **env)[1] > 80


# Addresses of a step's memory beside a state and batches, none of which is written to.
STEPS = """
import sys
from simmim_jax import host_memory

host_memory.keep_all_freed()
libc = host_memory._libc()
state = [libc.malloc(20_000_000) for _ in range(50)]
if sys.argv[1:]:
    host_memory.make_room()
places, batches = set(), []
for step in range(20):
    block = libc.malloc(1_000_000_000)
    places.add(block)
    batches.append(libc.malloc(19_000_000))
    libc.free(block)
    libc.malloc(10_000 * step)
    if len(batches) > 2:
        libc.free(batches.pop(0))
print(len(places))
"""
# Memory in use, in kilobytes, with every other block of many freed, and given back; and
# what it takes to fill a large block that was freed before.
GAPS = """
import resource
from pathlib import Path
from simmim_jax import host_memory

def used():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

def large():
    block = bytearray(200_000_000)
    block[::4096] = bytes(len(block[::4096]))

host_memory.keep_all_freed()
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
def test_steps_follow_each_other_in_the_same_place():
    assert run(STEPS, "with room") == [1]
    (places,) = run(STEPS)
    assert places > 1


@glibc
def test_gaps_go_back_and_the_end_stays():
    given_back, missed = run(GAPS)
    assert 60_000 < given_back < 150_000  # of 100 MB
    assert missed < 100


@glibc
def test_a_run_holds_the_memory_of_one_step(tmp_path):
    fields = {"data.batch_size": 1024, "model.embed_dim": 64, "duration": "6 steps"}
    fields |= {"eval_every": "4 steps"}
    patches = {"model.patch_size": (4, 4), "mask.unit_size": (4, 4)}
    config = tiny_config.get_config("pretrain")
    config.update_from_flattened_dict(fields | patches)
    plan = compilation.plan(
        config, pretrain.learner(config, 10_000), sharding.make_mesh()
    )
    of_a_step = plan.lower().compile().memory_analysis().temp_size_in_bytes / 1024

    most = {}
    with commands.start(
        *commands.tiny("pretrain", tmp_path),
        *(f"--config.{name}={value}" for name, value in (fields | patches).items()),
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        for line in process.stdout:
            # Neither is the last of the run.
            for moment in ("compiled the training step", "step 6: "):
                if line.startswith(moment):
                    text = status.read_text()
                    most[moment] = int(text.partition("VmHWM:")[2].split()[0])
    assert process.returncode == 0
    before, after = most.values()
    assert of_a_step > 100_000
    # Evaluation, which takes less, lies in the room beside it.
    assert of_a_step / 2 < after - before < 1.6 * of_a_step


def test_what_jax_may_find(monkeypatch):
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
