"""What every test module has."""

import contextlib
import gc
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of a test's time goes into compiling. JAX and the processes that tests start read
# both variables; with the first one 0, everything is compiled as for users.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and version(
    "jaxlib"
).startswith("0.10."):
    # Without them a Swin compiles three times as fast (jaxlib 0.10.2: 2.8 -> 0.7 s).
    # jaxlib 0.12 does not know the flag, and ends where it is set.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
    )

# What one module or process compiled, all others of the session load. Workers inherit
# the folder from the process that started them, which removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="simmim_jax-programs-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _programs.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import jax
import pytest

# Tracing makes many objects, but few cycles: looking for them took a tenth of the time.
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Compiled programs of all modules together would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With SIMMIM_NO_SKIPS=1, as in CI with every extra, a skipped test fails."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Likewise a module that is skipped as a whole."""
    return _not_skipped((yield))


# Tests and modules that were skipped: CI runs them again beside every extra.
_skipped: list[str] = []


def pytest_runtest_logreport(report):
    """Note a skipped test, of any worker."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_collectreport(report):
    """Note a module that is skipped as a whole."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish():
    """Write one a line to the file that SIMMIM_SKIPPED names."""
    file = os.environ.get("SIMMIM_SKIPPED")
    if file and "PYTEST_XDIST_WORKER" not in os.environ:
        Path(file).write_text("".join(f"{name}\n" for name in dict.fromkeys(_skipped)))


def _not_skipped(report):
    if report.skipped and os.environ.get("SIMMIM_NO_SKIPS") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


@pytest.fixture
def open_folder():
    """A folder that every user may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def without_root():
    """A context in which this process may not read everything."""

    @contextlib.contextmanager
    def plain_user():
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)

    return plain_user()


# A shell starts what runs in the background with Ctrl-C ignored, and so would be the
# processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
