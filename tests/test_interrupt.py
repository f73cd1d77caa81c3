"""Signals wait for the end of a step, then go where they were going."""

import signal

import pytest

from lra.interrupt import SIGNALS, Interrupt


@pytest.fixture
def handlers():
    """Puts the handlers back that a test replaces."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_waits_until_it_is_delivered(handlers, signum):
    heard = []
    signal.signal(signum, lambda *call: heard.append(call[0]))
    with Interrupt() as interrupt:
        signal.raise_signal(signum)
        assert interrupt.requested
        assert not heard
        interrupt.deliver()
        assert heard == [signum]
        assert not interrupt.requested
        assert not interrupt.ended_run
        signal.raise_signal(signum)  # still caught
        assert interrupt.requested
        interrupt.deliver()
    assert heard == [signum, signum]


@pytest.mark.parametrize(
    ("signum", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGUSR2, SystemExit),
    ],
)
def test_what_would_end_the_process_raises_so_that_the_run_is_recorded(signum, error):
    with Interrupt() as interrupt:
        signal.raise_signal(signum)
        with pytest.raises(error):
            interrupt.deliver()
    assert interrupt.ended_run


def test_all_signals_are_delivered_and_those_that_are_ignored_do_nothing(handlers):
    heard = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *call: heard.append(call[0]))  # goes on, as submitit does
    signal.signal(signal.SIGUSR2, lambda *call: heard.append(call[0]))
    with Interrupt() as interrupt:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.raise_signal(signum)
        interrupt.deliver()
    assert heard == [signal.SIGTERM, signal.SIGUSR2]


def test_a_signal_after_the_last_step_is_not_lost(handlers):
    heard = []
    signal.signal(signal.SIGUSR2, lambda *call: heard.append(call[0]))
    with Interrupt():
        signal.raise_signal(signal.SIGUSR2)
    assert heard == [signal.SIGUSR2]


def test_whoever_presses_ctrl_c_again_does_not_wait(monkeypatch):
    now = iter([100.0, 100.2, 101.5])  # a terminal's and a launcher's Ctrl-C come together
    monkeypatch.setattr("lra.interrupt.time.monotonic", lambda: next(now))
    interrupt = Interrupt()
    interrupt.__enter__()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert interrupt.requested
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    interrupt.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
