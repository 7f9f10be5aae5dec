"""What every test module has."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Compiled programs of all modules together would take gigabytes."""
    yield
    jax.clear_caches()
