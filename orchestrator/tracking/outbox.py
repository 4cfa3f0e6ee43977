"""Sends messages to MLflow in order, from a separate thread, so that nobody waits for a slow or lost store.

Knows nothing of what the messages say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from orchestrator.messages import first_line, root_cause

logger = logging.getLogger(__name__)


class Outbox:
    """Sends messages in order from a separate thread, and keeps them while the store is lost.

    address: of the store, for log lines; may_pass: whether a message that failed with this error may succeed later. A
    message that fails otherwise is dropped, with a warning.
    """

    SLOWEST_RETRY = 15.0  # seconds

    def __init__(self, address: str, may_pass: Callable[[Exception], bool]) -> None:
        self._address, self._may_pass = address, may_pass
        self._queue: deque[tuple[str, Callable[[], object]]] = deque()
        self._changed = threading.Condition()
        self._failed_at: float | None = None
        self._stopped = self._hurry = False
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Number of messages that are not sent yet."""
        return len(self._queue)

    def put(self, what: str, call: Callable[[], object]) -> None:
        """Queues a message and returns at once. what: its name in warnings; call: sends it, or raises."""
        with self._changed:
            self._queue.append((what, call))
            self._changed.notify_all()

    def drain(self, patience: float) -> bool:
        """Waits until everything is sent (True), or until the store has been lost for `patience` seconds (False)."""
        start = time.monotonic()
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._queue:
                # A request in flight ends by MLflow's own timeout; only failures count against the patience.
                if self._failed_at is not None and time.monotonic() > max(start, self._failed_at) + patience:
                    break
                self._changed.wait(0.1)
            self._hurry = False
            return not self._queue

    def stop(self) -> None:
        """Ends the thread; what is not sent by then never is."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        pause = 0.5
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if self._stopped:
                    return
                what, call = self._queue[0]
            try:
                call()
            except Exception as error:  # whatever MLflow raises, the search goes on
                if self._may_pass(error):
                    self._lost(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped or self._hurry, timeout=pause)
                        if self._hurry and not self._stopped:
                            self._changed.wait(0.5)
                    pause = min(2 * pause, self.SLOWEST_RETRY)
                    continue
                self._warn_once(f"MLflow did not take the {what}: {first_line(error)}")
            pause = 0.5
            with self._changed:
                if self._failed_at is not None:
                    logger.warning("MLflow at %s is back; sending %d messages", self._address, len(self._queue))
                self._failed_at = None
                self._queue.popleft()
                self._changed.notify_all()

    def _lost(self, error: Exception) -> None:
        if self._failed_at is None:
            reason = root_cause(error)
            logger.warning("MLflow at %s is lost (%s); metrics are kept and sent later", self._address, reason)
            self._failed_at = time.monotonic()

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)
