"""Memory of a process that trains on CPUs: kept from one step to the next.

XLA allocates a step's temporary arrays anew each time. glibc takes large blocks from
the system and gives them back at once, so that each step waits for pages filled with
zeros, 4 KB a time.
"""

import ctypes
import importlib.util
import mmap
import os
import platform
from importlib.metadata import entry_points

# Parameters of mallopt, as numbered in glibc's <malloc.h>, and their values: all
# threads share one heap, everything comes from it, and its end is not given back.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1
_ONE_HEAP = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}


def keep_freed() -> None:
    """Keeps freed memory for later arrays, and lays it in pages of 2 MB where it can.

    To be called before JAX starts its threads. Half of the machine's memory is reserved
    for it, as addresses: only what is written to is used. Does nothing without glibc,
    or where JAX may find other devices than CPUs.
    """
    if platform.libc_ver()[0] != "glibc" or not _cpus_alone():
        return
    libc = ctypes.CDLL(None)
    for option, value in _ONE_HEAP.items():
        libc.mallopt(option, value)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = os.sysconf("SC_PAGE_SIZE")
    size = os.sysconf("SC_PHYS_PAGES") // 2 * page
    # The heap grows by a block, and stays as large when it is freed. Where pages have
    # another size, large ones may have 512 MB.
    if page == 4096 and (block := libc.malloc(size)):
        first = -(-block // page) * page
        libc.madvise(first, size - page, mmap.MADV_HUGEPAGE)
        libc.free(block)


def _cpus_alone() -> bool:
    """Whether JAX, which is not asked yet, can find nothing but CPUs."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    # Where JAX looks for a TPU and for plugins of other devices.
    return not (importlib.util.find_spec("libtpu") or entry_points(group="jax_plugins"))
