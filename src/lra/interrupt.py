"""Stopping at a step boundary when a signal asks for it."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupt:
    """Context in which SIGINT, SIGTERM and SIGUSR2 only set a flag.

    The loop asks `requested` at each step boundary, saves, and calls `deliver`, which hands the
    signals to the handlers that were there before: those of a cluster's launcher, or python's.
    Whoever presses Ctrl-C again, a second later or more, does not wait for the step.
    """

    def __init__(self) -> None:
        self.ended_run = False
        """Whether a handler to which a signal was delivered raised."""
        self._pending: list[int] = []
        self._first_at = 0.0
        self._previous: dict[signal.Signals, Handler] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal waits to be delivered."""
        return bool(self._pending)

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if error is None:
            self.deliver()  # what came after the last step

    def deliver(self) -> None:
        """Hand the signals on; returns if their handlers do, and training is to continue.

        SIGINT raises KeyboardInterrupt unless something else was set up. Where the system would
        end the process, SystemExit does, with the status that a shell reports for the signal.
        """
        while self._pending:
            signum = self._pending.pop(0)
            handler = self._previous[signal.Signals(signum)]
            self.ended_run = True
            if callable(handler):
                handler(signum, None)
            elif handler != signal.SIG_IGN:
                raise SystemExit(128 + signum)
            self.ended_run = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._pending:
            self._first_at = now
        self._pending.append(signum)
        if signum == signal.SIGINT and now - self._first_at > 1:
            self.deliver()
