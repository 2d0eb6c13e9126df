"""A synchronisation is followed to its true end, through the absence of those who can be asked."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from console.errors import SyncFailed, SyncNotFollowed, WaitFailed
from console.progress import Bar
from console.sync_follow import Follower, check_ended_well, check_replicating
from facade.contract.errors import BadName, TrellisError, UnreachableError


class Gone(UnreachableError):
    code = "test_gone"
    message = "Nobody is there."
    hint = "Wait."


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def job(state: str, **more: Any) -> dict[str, Any]:
    return {"state": state, "done_bytes": 1, "total_bytes": 2, "rate_bytes_per_s": 1.0,
            "error": None, **more}  # fmt: skip


def answers(*given: Mapping[str, Any] | TrellisError) -> Callable[[], Mapping[str, Any]]:
    left = list(given)

    def ask() -> Mapping[str, Any]:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, TrellisError):
            raise one
        return one

    return ask


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def follower(clock: Clock) -> Follower:
    return Follower("set1", Bar("set1", quiet=True), 60.0, clock, clock.sleep)


def test_follows_until_the_job_has_ended(follower: Follower) -> None:
    ended = follower.follow(answers(job("running"), job("running"), job("done")))
    assert ended["state"] == "done"


def test_bears_absence_for_a_while(follower: Follower) -> None:
    ended = follower.follow(answers(job("running"), *[Gone()] * 50, job("running"), job("done")))
    assert ended["state"] == "done"


def test_gives_up_asking_after_the_limit(follower: Follower, clock: Clock) -> None:
    with pytest.raises(SyncNotFollowed, match="goes on in the engine") as caught:
        follower.follow(answers(job("running"), Gone()))
    assert caught.value.exit_status == 3
    assert 60 <= clock.now_s < 62


def test_absences_do_not_add_up(follower: Follower, clock: Clock) -> None:
    away = [Gone()] * 100
    ended = follower.follow(
        answers(*away, job("running"), *away, job("running"), *away, job("done"))
    )
    assert ended["state"] == "done"
    assert clock.now_s > 60


def test_an_error_that_is_not_absence_is_raised_at_once(follower: Follower) -> None:
    error = BadName(kind="set", name="x", rule="y")
    with pytest.raises(BadName):
        follower.follow(answers(job("running"), error))


def test_failed_job_raises_its_own_error() -> None:
    wire = {"code": "disk_on_fire", "message": "The disk burns.", "hint": "Run.", "data": {}}
    with pytest.raises(TrellisError, match="The disk burns") as caught:
        check_ended_well("set1", job("failed", error=wire))
    assert caught.value.code == "disk_on_fire"
    assert caught.value.exit_status == 1


def test_job_failed_because_somebody_was_away_is_a_failure() -> None:
    wire = {"code": "test_gone", "message": "Nobody is there.", "hint": "", "data": {}}
    with pytest.raises(SyncFailed, match="Nobody is there") as caught:
        check_ended_well("set1", job("failed", error=wire))
    assert caught.value.exit_status == 1


def test_cancelled_job_is_no_success() -> None:
    with pytest.raises(SyncFailed, match="cancelled"):
        check_ended_well("set1", job("cancelled"))


def test_only_replicating_counts_as_replicating() -> None:
    check_replicating({"name": "set1", "state": "replicating"})
    with pytest.raises(WaitFailed, match="its state is logging"):
        check_replicating({"name": "set1", "state": "logging"})
