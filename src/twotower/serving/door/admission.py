"""Who is computed for next, and who is sent away: one at a time, in order, with a bounded wait.

Answering takes the processor for a millisecond or so and the interpreter can do one thing at a time; threads would only
hand that one thing round. So requests wait in a queue that can be seen, and one that would wait too long is told so at
once, while those admitted stay quick.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

PATIENCE_S = 0.004
"""The longest wait while more is asked than can be answered: then waiting helps nobody."""
BURST_S = 0.1
"""The longest wait otherwise: a burst is waited through. Too much is asked while the queue has not been empty for as
long, and for as long after anybody was sent away: a queue that was emptied by sending away is none that emptied."""
SMALL = 3
"""As many may always wait: a handful of callers is no rush."""
WAITED_OUT = 1.5
"""Times the wait that was expected of somebody in the queue: then the estimate was wrong, and the wait is over."""
SMOOTHING = 0.05
"""Weight of the newest in the mean time from one turn to the next."""
RETRY_AFTER_S = 1
"""What is told to whoever is sent away."""


class OverloadedError(Exception):
    """There is no room now; nothing was computed."""


class Gate:
    """Lets one at a time through.

    Source:
        The choice between two waits by whether the queue was empty of late: Maurer, "Fail at scale", ACM Queue 13(8),
        2015, https://doi.org/10.1145/2838344.2839461, after CoDel (Nichols and Jacobson, ACM Queue 10(5), 2012).
    """

    def __init__(self, *, shed: Callable[[], None], patience_s: float = PATIENCE_S, burst_s: float = BURST_S) -> None:
        """Belongs to one event loop; `shed` is told of each who is sent away."""
        self.shed = shed
        self._patience = patience_s
        self._burst = burst_s
        self._busy = False
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        """A place in the queue, and since when; infinity where no wait is too long."""
        self._between = 0.001
        """Seconds from one turn to the next while some wait: all that an answer takes, reading and writing included."""
        self._handed_at = self._empty_at = time.perf_counter()
        self._shed_at = -math.inf

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether one that came now would be sent away."""
        return len(self._waiting) >= SMALL and len(self._waiting) * self._between > self._longest()

    def sends_away(self) -> bool:
        """Whether one that comes now is sent away; it counts as sent away by this."""
        if not self.is_full:
            return False
        self._send_away()
        return True

    @property
    def is_idle(self) -> bool:
        """Whether a turn would be had at once: nobody is computed for, and nobody waits."""
        return not self._busy and not self._waiting

    @asynccontextmanager
    async def turn(self, *, is_admitted: bool = False) -> AsyncIterator[None]:
        """Hold the processor; what is done within should not wait for anything.

        Args:
            is_admitted: Whether this is the rest of something that has begun, which is not sent away any more.

        Raises:
            OverloadedError: the wait would be, or was, too long.
        """
        await self._enter(is_admitted=is_admitted)
        try:
            yield
        finally:
            # Not at once: the loop looks at what came in meanwhile, and sends away what has no room, between any two.
            asyncio.get_running_loop().call_soon(self._leave)

    async def _enter(self, *, is_admitted: bool) -> None:
        now = time.perf_counter()
        if not self._busy:
            self._busy, self._handed_at = True, now
            return
        if not self._waiting:
            self._empty_at = now
        if not is_admitted and self.sends_away():
            raise OverloadedError
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((place, math.inf if is_admitted else now))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._leave()  # The turn had just been handed over.
            raise

    def _leave(self) -> None:
        """Hand the turn to the next who has not waited too long."""
        now = time.perf_counter()
        longest = self._longest()
        while self._waiting:
            place, since = self._waiting.popleft()
            if place.done():  # Gave up.
                continue
            if now - since > WAITED_OUT * longest:
                self._send_away()
                place.set_exception(OverloadedError())
                continue
            place.set_result(None)
            self._between += SMOOTHING * (now - self._handed_at - self._between)
            self._handed_at = now
            return
        self._busy = False

    def _send_away(self) -> None:
        self._shed_at = time.perf_counter()
        self.shed()

    def _longest(self) -> float:
        """The wait that is allowed now."""
        now = time.perf_counter()
        is_too_much = now - self._empty_at > self._burst or now - self._shed_at < self._burst
        return self._patience if is_too_much else self._burst
