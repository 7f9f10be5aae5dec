"""Memory that is freed is there for the next step."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Pages that the system looked for when a thread made a fourth large array.
FAULTS = """
import os, resource, sys, threading
from simmim_jax import host_memory
if sys.argv[1] == "keep":
    host_memory.keep_freed()
usage = lambda: resource.getrusage(resource.RUSAGE_SELF)
before = usage().ru_maxrss

def allocate():
    for _ in range(4):
        begin = usage().ru_minflt
        block = bytearray(200_000_000)
        block[::4096] = bytes(len(block[::4096]))
        faults.append(usage().ru_minflt - begin)
        del block

faults = []
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
print(faults[-1], before, usage().ru_maxrss)
"""


def faults(action, **env):
    """Faults of the last array, and kilobytes held before and at most."""
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, action],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
    )
    return [int(number) for number in run.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_freed_memory_is_kept_and_nothing_more_is_used():
    found, before, most = faults("keep")
    assert found < 20
    assert before < 200_000
    assert most < before + 300_000
    assert faults("leave")[0] > 80  # pages of 2 MB, or more of 4 KB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_where_there_may_be_other_devices_nothing_changes():
    assert faults("keep", JAX_PLATFORMS="cuda,cpu")[0] > 80
