"""Freed memory that stays with the process, where its malloc is glibc's.

By default large blocks come from the system and go back to it at once, and each use of
them waits for pages filled with zeros, 4 KB a time.
"""

import ctypes
import importlib.util
import mmap
import os
import platform
import re
from importlib.metadata import entry_points
from pathlib import Path

# Parameters of mallopt, as numbered in glibc's <malloc.h>.
_M_ARENA_MAX, _M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -4, -3, -1
# All threads share one heap, everything comes from it, and its end is not given back.
_ALL = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
# Up to 64 MB a thread.
_IMAGES = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}

# The place for what is small beside a step's memory, and what keeps both apart.
_ROOM, _FENCE = 2**28, 2**20

_keeps_all = False


def keep_freed_images() -> None:
    """For a process that decodes images, which take megabytes for a millisecond.

    To fetch their pages anew takes a third of all time.
    """
    if not _keeps_all:
        _set(_IMAGES)


def keep_all_freed() -> bool:
    """For a process that trains on one CPU device, where a step takes gigabytes.

    What is kept lies in pages of 2 MB where it can: half of the machine's memory is
    reserved for it, as addresses. Steps must follow each other: one that is started
    while another runs would have memory of its own, and that is kept, too. Does
    nothing, and returns False, where JAX may find other devices, or where the
    environment configures malloc.
    """
    global _keeps_all
    if _is_configured() or not one_cpu_device() or not _set(_ALL):
        return False
    _keeps_all = True
    # Where pages have another size, large ones may have 512 MB.
    if os.sysconf("SC_PAGE_SIZE") == 4096 and _addresses_are_free():
        _lay_large_pages(_half_of_memory(), 4096)
    return True


def make_room() -> None:
    """For the steps to come, where all is kept; once their state and program exist.

    A step's memory is the end of the heap. What is small must not come to lie above it,
    or the next step has to go elsewhere: so it gets a place below.
    """
    give_back_gaps()
    if not _keeps_all or not _addresses_are_free():
        return
    libc = _libc()
    room, fences = libc.malloc(_ROOM), [libc.malloc(_FENCE)]
    while fences[-1] and fences[-1] < room:  # it went into a gap
        fences.append(libc.malloc(_FENCE))
    for block in (room, *fences[:-1]):
        libc.free(block)


def give_back_gaps() -> None:
    """Gives the system back what is kept between blocks that are in use.

    A compiler leaves many small gaps, which no large array fits into. What is free at
    the end of the heap stays.
    """
    if _keeps_all:
        _libc().malloc_trim(_half_of_memory())


def one_cpu_device() -> bool:
    """Whether JAX, which is not asked yet, can find nothing but one CPU device."""
    virtual = re.findall(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    devices = virtual[-1] if virtual else os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if int(devices) > 1:
        return False
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    # Where JAX looks for a TPU and for plugins of other devices.
    return not (
        "TPU_LIBRARY_PATH" in os.environ
        or importlib.util.find_spec("libtpu")
        or importlib.util.find_spec("jax_plugins")
        or entry_points(group="jax_plugins")
    )


def _set(options: dict[int, int]) -> bool:
    """Sets parameters of malloc; False where it has none."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = _libc()
    for option, value in options.items():
        libc.mallopt(option, value)
    return True


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")


def _is_configured() -> bool:
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)


def _addresses_are_free() -> bool:
    """Whether addresses that nothing is written to count nowhere."""
    import resource  # not on Windows

    try:
        overcommit = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:  # hidden, as in some containers
        return False
    limits = [resource.getrlimit(r) for r in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return overcommit != "2" and all(
        soft == resource.RLIM_INFINITY for soft, _ in limits
    )


def _lay_large_pages(size: int, page: int) -> None:
    """Lets the heap grow by a block, and stay as large when it is freed."""
    libc = _libc()
    if block := libc.malloc(size):
        first = -(-block // page) * page
        libc.madvise(first, size - page, mmap.MADV_HUGEPAGE)
        libc.free(block)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc
