"""What every test module has."""

import signal

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Compiled programs of all modules together would take gigabytes."""
    yield
    jax.clear_caches()


# A shell starts what runs in the background with Ctrl-C ignored, and so would be the
# processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
