"""Stopping at a step boundary when a signal asks for it."""

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context in which the first SIGINT or SIGTERM only sets a flag.

    The loop asks `requested` at each step boundary, saves, and calls `deliver`, which hands the
    signal to the handler that was there before. A second signal is delivered at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signum: int = signal.SIGINT

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def deliver(self) -> None:
        """Hand the signal on: KeyboardInterrupt for SIGINT, unless something else was set up."""
        self._restore()
        signal.raise_signal(self._signum)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        if self.requested:
            self.deliver()
        self.requested = True
