"""Keep freed memory with the process instead of returning it to the system (glibc).

By default glibc maps large blocks anew for each use, and the kernel zeroes their pages,
4 KB at a time. A training step on a CPU allocates gigabytes, an image megabytes.

glibc's environment variables alone either gain little or hold much more memory, because
they leave gaps between blocks, and they must be set before the process starts. A step
of ViT-B/16, batch 4, float32 (2 cores of an AMD EPYC, other programs running, November
2026), and the peak of a small run of 24 steps with 3 evaluations, when `kept` still had
one arena for all threads:

    setting                        CPU time  page faults  peak    small run's peak
    defaults                         5.64 s      263,000  2.8 GB            1.3 GB
    GLIBC_TUNABLES hugetlb=1         5.48 s        4,600  2.8 GB            1.3 GB
    variables like _RUN, hugetlb=1   4.93 s            0  3.5 GB     2.6 to 4.0 GB
    `kept`                           4.94 s           60  2.7 GB            1.5 GB
"""

import contextlib
import ctypes
import importlib.util
import mmap
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

# Parameters of mallopt, as numbered in glibc's <malloc.h>.
_M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -4, -3, -1
# Steps take the main thread's heap, whose end is never trimmed. Other threads keep
# arenas of their own: with one for all, XLA's threads contend for its lock while malloc
# searches the many free blocks that a compilation leaves.
_RUN = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
# glibc's defaults.
_DEFAULTS = {_M_MMAP_MAX: 2**16, _M_TRIM_THRESHOLD: 2**17}
# Keep up to 64 MB a thread.
_IMAGES = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}

# Sizes of the reserve for small allocations, and of its guard block [bytes].
_RESERVE, _GUARD = 2**28, 2**20

_keeps_all = False


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory while a run trains on one CPU device.

    Enter it before JAX initialises devices, and run steps in the main thread: glibc
    maps what other threads allocate above 64 MB anew. The loop calls `make_room` once
    its state and program exist, and `give_back_gaps` when it has run other programs;
    both are functions, not methods of a result, because malloc's settings are the
    process's. Half of the machine's memory is reserved as address space, in pages of
    2 MB where possible. Does nothing if the run has several processes, JAX may find
    other devices, or the environment configures malloc.
    """
    global _keeps_all
    import jax  # not in worker processes, which import this module

    if not jax.distributed.is_initialized() and _keep_all_freed():
        # Asynchronous dispatch would allocate the next step before this step's memory
        # is free, and both would be kept.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        yield
    finally:
        if _keeps_all:
            _keeps_all = False
            _set(_DEFAULTS)
            _libc().malloc_trim(0)


def keep_freed_images() -> None:
    """Keep the memory of decoded images: megabytes each, for a millisecond.

    Mapping their pages anew takes a third of a worker's time.
    """
    thresholds = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if not _keeps_all and not thresholds:
        _set(_IMAGES)


def make_room() -> None:
    """Reserve space for small allocations, below the memory of steps.

    A step takes the end of the heap. A small block above it would push the next step
    further up, so small blocks get a reserve of their own. Call it once, when state and
    program exist. No effect outside `kept`.
    """
    give_back_gaps()
    if not _keeps_all or not _reserving_is_free():
        return
    libc = _libc()
    reserve, guards = libc.malloc(_RESERVE), [libc.malloc(_GUARD)]
    while guards[-1] and guards[-1] < reserve:  # it filled a gap below
        guards.append(libc.malloc(_GUARD))
    for block in (reserve, *guards[:-1]):
        libc.free(block)


def give_back_gaps() -> None:
    """Return free memory between blocks in use to the system. No effect outside `kept`.

    Compilers leave many gaps that are too small for large arrays. Free memory at the
    end of the heap stays.
    """
    if _keeps_all:
        _libc().malloc_trim(_half_of_memory())


def one_cpu_device() -> bool:
    """Return whether one CPU is all that JAX can find, without initialising JAX."""
    virtual = re.findall(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    devices = virtual[-1] if virtual else os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if int(devices) > 1:
        return False
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    # Where JAX looks for TPUs and for plugins of other devices. Importing libtpu, which
    # JAX does wherever it is installed, sets the variable as well.
    return not (
        "TPU_LIBRARY_PATH" in os.environ
        or importlib.util.find_spec("libtpu")
        or importlib.util.find_spec("jax_plugins")
        or entry_points(group="jax_plugins")
    )


def _keep_all_freed() -> bool:
    """Configure malloc and reserve address space; return False if it does nothing."""
    global _keeps_all
    if _is_configured() or not one_cpu_device() or not _set(_RUN):
        return False
    _keeps_all = True
    # With base pages of another size, huge pages may have 512 MB.
    if os.sysconf("SC_PAGE_SIZE") == 4096 and _reserving_is_free():
        _reserve_huge_pages(_half_of_memory(), 4096)
    return True


def _set(options: dict[int, int]) -> bool:
    """Set parameters of malloc; return False if it is not glibc's."""
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


def _reserving_is_free() -> bool:
    """Whether reserving untouched address space is free."""
    import resource  # not on Windows

    try:
        overcommit = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:  # hidden, as in some containers
        return False
    limits = [resource.getrlimit(r) for r in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return overcommit != "2" and all(
        soft == resource.RLIM_INFINITY for soft, _ in limits
    )


def _reserve_huge_pages(size: int, page: int) -> None:
    """Grow the heap by a block of huge pages, and free the block.

    size, page: of the block and of a base page [bytes].
    """
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
