"""Signals: raised at once, postponed, heard by a busy main thread, and sent twice."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from simmim_jax.errors import Interrupted
from simmim_jax.runtime import interrupt


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # handlers run between two bytecodes


def swallowed(call):
    with contextlib.suppress(Exception):
        call()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_at_once_and_is_no_ordinary_exception(number):
    with interrupt.catching() as signals:
        signals.listen()
        with pytest.raises(Interrupted, match=f"{number.name}: the same command"):
            swallowed(lambda: send(number))


def test_handlers_are_restored_and_nested_calls_share_them():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.catching() as outer:
        with interrupt.catching() as inner:
            assert inner is outer
            assert signal.getsignal(signal.SIGTERM) is before  # not listening yet
            inner.listen()
            inner.listen()
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_postponed_signals_are_recorded_and_raise_where_nothing_would_be_lost():
    with interrupt.catching() as signals:
        signals.listen()
        with signals.postponed() as received:
            send()
            assert received == ["SIGTERM"]
            with pytest.raises(Interrupted), signals.at_once(finish=lambda: None):
                pytest.fail("the signal came before")
            send()  # within a second: the same one, sent to process and group


def test_a_signal_at_the_end_of_a_run_stops_the_next_one_before_it_begins():
    with interrupt.catching() as signals:
        signals.listen()
        with signals.postponed():
            send()
        with pytest.raises(Interrupted, match="SIGTERM"), interrupt.catching():
            pytest.fail("the signal came before")


def run(body):
    """Return a process that runs `body` while it listens, after it prints a line."""
    begin = (
        "import hashlib, os, time\n"
        "from simmim_jax.runtime import interrupt\n"
        "end = lambda it: (print(it, flush=True), os._exit(75))\n"
        "with interrupt.catching(end) as signals:\n"
        "    signals.listen()\n"
        "    print('ready', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", begin + body], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # until it is busy
    return process


# A computation in C that lets other threads run, as XLA's compiler does.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"    {BUSY}\n", ""),
        (
            "    with signals.postponed(), signals.at_once(lambda: print('written')):\n"
            f"        {BUSY}\n",
            "written\n",
        ),
    ],
)
def test_a_busy_main_thread_is_ended_within_a_second_or_two(body, said):
    process = run(body)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - before < 5
    assert process.returncode == 75
    assert output == (
        f"{said}SIGTERM: the same command resumes from the last checkpoint.\n"
    )


def test_an_interruption_in_a_hook_of_garbage_collection_ends_the_process(capfd):
    process = run(
        "    import gc\n"
        "    gc.callbacks.append(lambda *_: time.sleep(1))\n"
        "    gc.collect()\n"
        "    time.sleep(60)\n"
    )
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert time.monotonic() - before < 4
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_an_interruption_that_a_library_swallows_ends_the_process_all_the_same():
    process = run(
        "    try:\n"
        "        time.sleep(60)\n"
        "    except BaseException:\n"
        "        time.sleep(60)\n"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75


def test_a_second_signal_ends_what_the_first_one_did_not():
    process = run(f"    with signals.postponed():\n        {BUSY}\n")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
