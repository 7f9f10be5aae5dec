"""Messages of Orbax, TensorStore and asyncio that say nothing, or say it again.

A write that fails is raised once, by `Checkpointer`. Before that, every thread that
took part logs its traceback, and TensorStore one for each array that was still to be
written: thousands of lines on a full disk.
"""

import logging
import sys

# Warnings about intended use, such as items that are read one by one.
_INTENDED = ("Metadata file does not exist", "Global object size logging disabled")
# Errors that are raised as well.
_RAISED = (
    "_SignalingThread.run() raised",
    "background save thread",
    "Save Finalize",
    "Failed to write metadata",
)


def leave_out_known_ones() -> None:
    """Filter the messages of this process."""
    logging.getLogger("absl").addFilter(_is_new)
    logging.getLogger("asyncio").addFilter(_is_not_of_a_checkpoint)
    former = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            former(unraisable)

    sys.unraisablehook = report


def _is_new(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith(_INTENDED) or any(part in text for part in _RAISED))


def _is_not_of_a_checkpoint(record: logging.LogRecord) -> bool:
    error = record.exc_info and record.exc_info[1]
    return ".orbax-checkpoint-tmp" not in str(error)
