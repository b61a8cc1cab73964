"""Who met what before when: the one place that decides what a history may hold.

Training, evaluation and serving all ask `UserLog.before`, which answers with what is *strictly* earlier: neither the
interaction asked about nor one at the same instant, so nothing of the future can enter a history. One recipe setting,
`training = "others"`, lets training, and training alone, read the rest of the user's train part as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLog:
    """Every user's interactions side by side, oldest first; ties in time keep the order of the input.

    `U` users, `n` interactions. User `u` owns the places `start[u]` up to but without `start[u + 1]`.
    """

    item: NDArray[np.int32]
    """`[n]` catalogue row of the item."""
    timestamp: NDArray[np.int64]
    """`[n]` microseconds since 1970, not descending within a user."""
    start: NDArray[np.int64]
    """`[U + 1]` first place of each user."""

    @classmethod
    def from_columns(
        cls,
        user: NDArray[np.int32],
        item: NDArray[np.int32],
        timestamp: NDArray[np.int64],
        *,
        users: int,
    ) -> "UserLog":
        """Sort `n` interactions by user and time.

        Args:
            user: `[n]` user rows below `users`.
            item: `[n]` catalogue rows.
            timestamp: `[n]` microseconds since 1970.
            users: How many users there are, also those without an interaction.
        """
        order = np.lexsort((timestamp, user))
        start = np.zeros(users + 1, np.int64)
        np.cumsum(np.bincount(user, minlength=users), out=start[1:])
        return cls(item=item[order], timestamp=timestamp[order], start=start)

    def before(
        self, user: NDArray[np.int32], timestamp: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of what each user met strictly before a moment: `first` up to but without `end`, both `[q]`.

        Args:
            user: `[q]` user rows; -1 stands for somebody unknown, whose history is empty.
            timestamp: `[q]` microseconds since 1970.
        """
        if len(user) == 1:  # A server asks for one, and all of the below takes ten times as long as this.
            first = self.start[max(0, int(user[0]))]
            span = self.timestamp[first : self.start[int(user[0]) + 1]] if user[0] >= 0 else self.timestamp[:0]
            end = first + np.searchsorted(span, timestamp[0], side="left")
            return np.array([first], np.int64), np.array([end], np.int64)
        known = np.maximum(user, 0)
        low, high = self.start[known], self.start[known + 1]
        first = low.copy()
        high = np.where(user < 0, low, high)
        while True:  # Binary search for all queries at once.
            open_ = low < high
            if not open_.any():
                return first, low
            middle = (low + high) // 2
            earlier = np.zeros(len(user), bool)
            earlier[open_] = self.timestamp[middle[open_]] < timestamp[open_]
            low = np.where(open_ & earlier, middle + 1, low)
            high = np.where(open_ & ~earlier, middle, high)
