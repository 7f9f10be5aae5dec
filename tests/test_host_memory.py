"""Memory that is freed is there when it is wanted again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny_config

from simmim_jax import compilation, host_memory, pretrain, sharding

ROOT = Path(__file__).parents[1]
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


def faults(*names, **env):
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLI"))}
    output = subprocess.check_output(
        [sys.executable, "-c", FAULTS, *names],
        env=kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env,
    )
    return [int(number) for number in output.split()]


@glibc
def test_by_default_all_is_fetched_anew():
    images, large, *_ = faults()
    assert images > 10_000
    assert large > 80  # of 2 MB, or more of 4 KB


@glibc
def test_pages_of_images_are_fetched_once():
    images, large, *_ = faults("keep_freed_images")
    assert images < 2000  # 4 MB are 977 pages
    assert large > 80


@glibc
@pytest.mark.parametrize(
    "names", [("keep_all_freed",), ("keep_all_freed", "keep_freed_images")]
)
def test_all_that_is_freed_is_kept_and_nothing_more_is_used(names):
    images, large, before, most = faults(*names)
    assert images < 2000
    assert large < 20
    assert before < 100_000
    assert most < before + 300_000


@glibc
@pytest.mark.parametrize(
    "env", [{"JAX_PLATFORMS": "cuda,cpu"}, {"MALLOC_ARENA_MAX": "2"}], ids=str
)
def test_with_other_devices_or_settings_nothing_changes(env):
    assert faults("keep_all_freed", **env)[1] > 80


@glibc
def test_a_run_holds_the_memory_of_one_step(tmp_path):
    fields = {"data.batch_size": 1024, "model.embed_dim": 64, "duration": "10 steps"}
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
            for moment in ("compiled the training step", "best at step"):
                if moment in line:
                    text = status.read_text()
                    most[moment] = int(text.partition("VmHWM:")[2].split()[0])
                print(
                    line.strip(),
                    int(status.read_text().partition("VmHWM:")[2].split()[0]),
                )
    before, after = most.values()
    assert of_a_step > 100_000
    assert of_a_step / 2 < after - before < 1.4 * of_a_step


def test_what_jax_may_find(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert host_memory.cpus_alone()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [])
    assert host_memory.cpus_alone()
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [group])
    assert not host_memory.cpus_alone()
    monkeypatch.setattr(host_memory, "entry_points", lambda group: [])
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
    assert not host_memory.cpus_alone()
