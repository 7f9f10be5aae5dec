"""What every test module has."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory):
    """Indexes of data sets go where the tests' files go, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Compiled programs of all modules together would take gigabytes."""
    yield
    jax.clear_caches()
