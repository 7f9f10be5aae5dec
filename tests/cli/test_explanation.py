"""What the command line says of errors, and which exit status it gives them."""

import os

import jax
import pytest

from simmim_jax.cli import train
from simmim_jax.errors import StorageError, UserError

GLOO = "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Connection reset by peer"


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)


def raised_from(error, cause):
    error.__cause__ = cause
    return error


# What Orbax and JAX raised in the other processes when one was killed.
LOST = [
    jax.errors.JaxRuntimeError("INTERNAL: Gloo context initialization failed"),
    ValueError(GLOO),
    raised_from(TimeoutError("async_write_complete"), jax.errors.JaxRuntimeError("x")),
    raised_from(RuntimeError("save failed"), ValueError(GLOO)),
]


@pytest.mark.parametrize("error", LOST)
def test_a_lost_process_is_transient(error, processes):
    text = train.explanation(error)
    assert text.startswith(train.LOST)
    assert "The same command resumes from the last checkpoint." in text


@pytest.mark.parametrize("error", LOST)
def test_one_process_alone_has_none_to_lose(error):
    assert train.explanation(error) is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("INVALID_ARGUMENT: shapes"),
        KeyError("UNKNOWN"),
        UserError("config.seed='x': expected a number."),
        StorageError("'/runs' cannot be written to."),
        raised_from(StorageError("'/runs' cannot be written to."), ValueError(GLOO)),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory on device"),
    ],
)
def test_other_errors_of_a_process_are_its_own(error, processes):
    assert not (train.explanation(error) or "").startswith(train.LOST)


def test_a_workdir_that_cannot_be_written_to_ends_at_once(capsys):
    arguments = ["--config=quickstart:smoke", "--workdir=/proc/run"]
    with pytest.raises(SystemExit, match="'/proc/run' cannot be written to: "):
        train.main(arguments)
    assert not os.path.exists("/proc/run")
