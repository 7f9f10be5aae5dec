"""Memory for batches, reused once nobody holds an array of it.

No batch is copied and no page is requested again from the system. Worker processes
share this memory through a file without a name: when the last process ends, however it
ends, the memory is free.
"""

import collections
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping

import numpy as np

Batch = dict[str, np.ndarray]
# Shape and dtype of each array of a batch.
Fields = Mapping[str, tuple[tuple[int, ...], type]]

# Arrays start at a cache line: JAX on a CPU then uses them without a copy.
_ALIGNMENT = 64


class BatchMemory:
    """Slots for batches; shared: descriptor of their file, None: private memory."""

    def __init__(self, fields: Fields, shared: int | None = None):
        self._layout: dict[str, tuple[tuple[int, ...], type, int, int]] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            start = _round_up(end, _ALIGNMENT)
            end = start + math.prod(shape) * np.dtype(dtype).itemsize
            self._layout[name] = shape, dtype, start, end
        self._size = _round_up(end, mmap.ALLOCATIONGRANULARITY)
        self._shared = shared
        self._slots: list[mmap.mmap] = []
        self._free: collections.deque[int] = collections.deque()

    def take(self) -> tuple[int, Batch]:
        """Return a free slot and its arrays."""
        slot = self._free.popleft() if self._free else len(self._slots)
        if self._shared is not None and slot == len(self._slots):
            os.ftruncate(self._shared, (slot + 1) * self._size)
        # NumPy keeps this array as the base of all views of it, and of theirs.
        memory = np.frombuffer(self._slot(slot), np.uint8)
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return slot, self._arrays(memory)

    def at(self, slot: int) -> Batch:
        """Return the arrays of a slot that another process took."""
        return self._arrays(np.frombuffer(self._slot(slot), np.uint8))

    def _slot(self, slot: int) -> mmap.mmap:
        while len(self._slots) <= slot:
            if self._shared is None:
                self._slots.append(mmap.mmap(-1, self._size))
            else:
                offset = len(self._slots) * self._size
                self._slots.append(mmap.mmap(self._shared, self._size, offset=offset))
        return self._slots[slot]

    def _arrays(self, memory: np.ndarray) -> Batch:
        return {
            name: memory[start:end].view(dtype).reshape(shape)
            for name, (shape, dtype, start, end) in self._layout.items()
        }


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def anonymous_file() -> int:
    """Return the descriptor of a file without a name, in memory where that exists."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("simmim_jax")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
