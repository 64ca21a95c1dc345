"""Admission of requests: when a refused client shall try again."""

import pytest

from plamo2_jax.serve.errors import ApiError
from plamo2_jax.serve.work import Admission


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def retry_after(admission, jobs=1):
    with pytest.raises(ApiError) as refused:
        admission.check(jobs)
    assert refused.value.status == 429
    return int(refused.value.headers["Retry-After"])


def test_retry_after_is_the_number_of_jobs_over_the_rate_of_ends(clock):
    admission = Admission(4, clock)
    closes = [admission.open(object(), 1) for _ in range(4)]
    # Nothing has ended yet.
    assert retry_after(admission) == 1
    # One job ends every 5 s.
    for _ in range(8):
        clock.now += 5
        closes.pop(0)()
        closes.append(admission.open(object(), 1))
    assert [retry_after(admission, jobs) for jobs in (1, 2, 4)] == [5, 10, 20]
    clock.now += 1000
    assert retry_after(admission, 4) == 60


def test_retry_after_does_not_count_idle_time_and_forgets_old_ends(clock):
    admission = Admission(2, clock)
    for seconds in (50.0, 0.0, 0.0):
        clock.now += seconds
        admission.open(object(), 1)()
    clock.now += 1000
    closes = [admission.open(object(), 1) for _ in range(2)]
    for _ in range(3):
        clock.now += 2
        closes.pop(0)()
        closes.append(admission.open(object(), 1))
    assert retry_after(admission) == 2
    # The server becomes slower: after enough ends, only the new rate counts.
    for _ in range(80):
        clock.now += 7
        closes.pop(0)()
        closes.append(admission.open(object(), 1))
    assert retry_after(admission) == 7
