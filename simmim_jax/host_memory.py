"""Freed memory that stays with the process, where its malloc is glibc's.

By default large blocks come from the system and go back to it at once, and each use of
them waits for pages filled with zeros, 4 KB a time.
"""

import ctypes
import importlib.util
import mmap
import os
import platform
from importlib.metadata import entry_points
from pathlib import Path

# Parameters of mallopt, as numbered in glibc's <malloc.h>.
_M_ARENA_MAX, _M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -4, -3, -1
# All threads share one heap, everything comes from it, and its end is not given back.
_ALL = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
# Up to 64 MB a thread.
_IMAGES = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}

# Room for all that is no step's.
_SMALL = 2**28

_keeps_all = False


def keep_freed_images() -> None:
    """For a process that decodes images, which take megabytes for a millisecond.

    To fetch their pages anew takes a third of all time.
    """
    if not _keeps_all:
        _set(_IMAGES)


def keep_all_freed() -> bool:
    """For a process that trains on CPUs, where a step takes gigabytes for its time.

    To be called before JAX starts its threads. What is kept lies in pages of 2 MB where
    it can: half of the machine's memory is reserved for it, as addresses. Does nothing,
    and returns False, where JAX may find other devices, or where the environment
    configures malloc.
    """
    global _keeps_all
    if _is_configured() or not cpus_alone() or not _set(_ALL):
        return False
    _keeps_all = True
    # Where pages have another size, large ones may have 512 MB.
    if os.sysconf("SC_PAGE_SIZE") == 4096 and _addresses_are_free():
        _lay_out(_half_of_memory(), 4096)
    return True


def give_back_gaps() -> None:
    """Gives back what `keep_all_freed` kept between blocks that are in use.

    A compiler leaves many small gaps, which no large array fits into. What is free at
    the end of the heap stays.
    """
    if _keeps_all:
        libc = ctypes.CDLL(None)
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        libc.malloc_trim(_half_of_memory())


def cpus_alone() -> bool:
    """Whether JAX, which is not asked yet, can find nothing but CPUs."""
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
    libc = ctypes.CDLL(None)
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


def _lay_out(size: int, page: int) -> None:
    """Lets the heap grow by room for small arrays and by a block for large ones.

    Or else a small one above that of a step keeps the next step from the same place.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    room, _fence, block = map(libc.malloc, (_SMALL, 2**20, size))
    libc.free(room)
    if block:
        first = -(-block // page) * page
        libc.madvise(first, size - page, mmap.MADV_HUGEPAGE)
        libc.free(block)
