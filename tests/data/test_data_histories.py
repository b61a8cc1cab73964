"""What a history may hold, over random logs with many ties in time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from twotower.data.batches import gather_history
from twotower.data.histories import UserLog

USERS, ITEMS = 4, 6
LOGS = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        npst.arrays(np.int32, n, elements=st.integers(0, USERS - 1)),
        npst.arrays(np.int32, n, elements=st.integers(0, ITEMS - 1)),
        npst.arrays(np.int64, n, elements=st.integers(0, 8)),  # Few moments: nearly every log has ties.
    )
)


@given(LOGS)
def test_a_history_holds_all_that_is_strictly_earlier_and_nothing_else(columns: tuple[np.ndarray, ...]) -> None:
    user, item, timestamp = columns
    log = UserLog.from_columns(user, item, timestamp, users=USERS)
    first, end = log.before(user, timestamp)
    for row in range(len(user)):
        expected = sorted(
            (int(timestamp[other]), other)
            for other in range(len(user))
            if user[other] == user[row] and timestamp[other] < timestamp[row]
        )
        assert log.item[first[row] : end[row]].tolist() == [int(item[other]) for _, other in expected]


@given(LOGS, st.integers(1, 5))
def test_gathered_histories_are_newest_first_and_padded(columns: tuple[np.ndarray, ...], length: int) -> None:
    user, item, timestamp = columns
    log = UserLog.from_columns(user, item, timestamp, users=USERS)
    first, end = log.before(user, timestamp)
    gathered = gather_history(np, log.item, log.timestamp, first=first, end=end, now=timestamp, length=length)
    for row in range(len(user)):
        whole = log.item[first[row] : end[row]][::-1][:length].tolist()
        assert gathered["history_items"][row].tolist() == whole + [-1] * (length - len(whole))
        ages = gathered["history_days"][row]
        assert (ages[: len(whole)] > 0).all()
        assert (ages[len(whole) :] == 0).all()


def test_an_unknown_user_has_no_history() -> None:
    log = UserLog.from_columns(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.arange(3), users=1)
    first, end = log.before(np.array([-1, 0], np.int32), np.array([9, 9]))
    assert (end - first).tolist() == [0, 3]
