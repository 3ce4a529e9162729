"""Failed sign-ins are counted by address."""

import pytest

from service.errors import Problem
from service.web import failed
from service.web.failed import MOST_FAILED, WINDOW, FailedSignIns


class Clock:
    at = 1_000.0

    def __call__(self) -> float:
        return self.at


def test_an_address_waits_after_too_many_and_no_other() -> None:
    clock = Clock()
    counted = FailedSignIns(clock)
    for number in range(MOST_FAILED):
        counted.check("a")
        assert counted.count("a") == number + 1
    with pytest.raises(Problem, match="wait 300 s") as refused:
        counted.check("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "300"})
    counted.check("b")
    clock.at += WINDOW
    counted.check("a")
    assert counted.count("a") == 1


def test_a_million_addresses_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed, "MOST_ADDRESSES", 10)
    counted = FailedSignIns(Clock())
    for number in range(1_000):
        counted.count(str(number))
    assert len(counted._failed) == 10
