"""Turns of a worker: one at a time and in order, refused at once where the time is too short, never starved by refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import patch

import pytest

from burnish.serve.admission import Service, Turns
from burnish.serve.wire import Refused

HOUR = 3600.0


class Clock:
    """Time that passes only when work is done."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float, then: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
        """Something that takes so long."""

        def do() -> Any:
            self.now += seconds
            return then()

        return do


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taught(clock: Clock, seconds: float, most: int = 100) -> Turns:
    """Turns that know how long a row takes."""
    turns = Turns(most, clock)
    turns.service.met(1, seconds, clock())
    return turns


def run(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_turns_come_one_at_a_time_and_in_order(clock):
    turns, order = Turns(100, clock), list[int]()
    calls = (turns.run(lambda i=i: order.append(i) or i, 1, clock(), HOUR) for i in range(20))
    assert run(*calls) == order == list(range(20))


def test_what_arrives_during_a_turn_is_refused_when_that_turn_ends_not_when_its_own_would_come(clock):
    turns, happened = taught(clock, 0.02), list[str]()

    async def hopeless() -> None:
        with pytest.raises(Refused) as met:
            await turns.run(lambda: happened.append("scored"), 1, clock(), 0.03)
        happened.append("refused")
        assert met.value.status == 503
        assert str(met.value) == (
            "overloaded: 2 requests wait here, and an answer would take about 80 ms; the request's time is 30 ms. "
            "Try again later, or elsewhere"
        )

    patient = [turns.run(clock.work(0.02, lambda i=i: happened.append(f"turn {i}")), 1, clock(), HOUR) for i in range(4)]
    run(*patient[:3], hopeless(), patient[3])
    assert happened == ["turn 0", "refused", "turn 1", "turn 2", "turn 3"]


def test_a_queue_is_bounded(clock):
    turns = taught(clock, 0.001, most=3)
    answers = run(*(turns.run(clock.work(0.001), 1, clock(), HOUR) for _ in range(10)))
    assert answers[:4] == [None] * 4
    assert all(
        str(answer) == "overloaded: 3 requests wait here, which is as many as may. Try again later, or elsewhere" for answer in answers[4:]
    )


def test_a_request_whose_turn_comes_too_late_is_not_scored(clock):
    turns, scored = taught(clock, 0.001), list[str]()
    first, slow = (turns.run(clock.work(seconds), 1, clock(), HOUR) for seconds in (0.001, 0.1))  # a hundred times what was known
    *_, late = run(first, slow, turns.run(lambda: scored.append("late"), 1, clock(), 0.05))
    assert str(late) == "overloaded: the request waited longer than was expected; its time is 50 ms. Try again later, or elsewhere"
    assert scored == []


def test_an_idle_worker_refuses_what_takes_longer_than_its_time_and_tries_again_when_that_was_long_ago(clock):
    turns = taught(clock, 1.0)
    (refused,) = run(turns.run(clock.work(0.5), 1, clock(), 0.2))
    assert str(refused) == "1 rows take about 1e+03 ms here; the request's time is 200 ms"
    clock.now += 2
    (hopeless,) = run(turns.run(clock.work(0.5), 1, clock(), 0.05))
    assert isinstance(hopeless, Refused)
    assert run(turns.run(clock.work(0.5), 1, clock(), 0.2)) == [None]
    assert turns.service.seconds(1) == pytest.approx(0.9)


def test_a_request_that_is_alone_leaves_nothing_to_the_loop(clock):
    turns = Turns(100, clock)

    async def main() -> None:
        for inside, handles in ((1, 0), (2, 1)):
            turns.inside = inside
            with patch.object(asyncio.get_running_loop(), "call_soon") as call_soon:
                await turns.run(clock.work(0.01), 1, clock(), HOUR)
            assert call_soon.call_count == handles

    asyncio.run(main())


def test_what_a_request_raises_is_its_own(clock):
    turns = Turns(100, clock)

    def fail() -> None:
        raise ValueError("no such id")

    answers = run(*(turns.run(work, 1, clock(), HOUR) for work in (fail, lambda: 1, fail, lambda: 2)))
    assert list(map(str, answers)) == ["no such id", "1", "no such id", "2"]


def test_a_caller_that_goes_away_gives_its_place_to_the_next(clock):
    turns, scored = taught(clock, 0.01), list[str]()

    async def main() -> None:
        first, gone, last = (
            asyncio.create_task(turns.run(clock.work(0.01, lambda name=name: scored.append(name)), 1, clock(), HOUR))
            for name in ("first", "gone", "last")
        )
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(first, last)

    asyncio.run(main())
    assert scored == ["first", "last"]
    assert len(turns) == 0


def test_a_flood_of_refusals_leaves_half_of_the_time_for_scoring(clock):
    turns, scored = taught(clock, 0.001), list[int]()

    async def one() -> None:
        clock.now += 0.0005  # what taking it in and refusing it costs: fifty times what there is time for
        with contextlib.suppress(Refused):
            await turns.run(clock.work(0.001, lambda: scored.append(1)), 1, clock(), 1.0)

    async def flood() -> None:
        for _ in range(40):
            asyncio.gather(*(one() for _ in range(100)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    began = clock()
    asyncio.run(flood())
    assert len(scored) * 0.001 >= 0.45 * (clock() - began)


def test_service_is_learned_by_size_and_unknown_sizes_follow_the_nearest():
    service = Service()
    assert service.seconds(5) == 0.0
    service.met(16, 0.016, 0.0)
    assert service.seconds(16) == pytest.approx(0.016)
    assert service.seconds(64) == pytest.approx(0.064)
    assert service.seconds(1) == pytest.approx(0.016)  # less is not known
    service.met(1024, 0.5, 0.0)
    assert service.seconds(2048) == pytest.approx(1.0)
    service.met(16, 100.0, 0.0)  # a hiccup counts as four times the mean
    assert service.seconds(16) == pytest.approx(0.016 * 1.6)
    for _ in range(100):
        service.met(16, 0.004, 0.0)
    assert service.seconds(16) == pytest.approx(0.004)
    assert service.seconds(0) > 0.0


def test_what_takes_long_to_be_taken_in_has_waited_unseen_and_is_refused_sooner(clock):
    """Turns of 10 ms, and none waits; but the last one and its taking in took 50 ms. Of the 56 ms (of 70) 10 would do, were it not for
    those."""
    turns = taught(clock, 0.01)

    async def main() -> list[Any]:
        first = asyncio.ensure_future(turns.run(clock.work(0.01), 1, clock(), HOUR))
        waits = [asyncio.ensure_future(turns.run(clock.work(0.01), 1, clock(), HOUR)) for _ in range(2)]
        await asyncio.sleep(0)
        assert turns.refusal(1, clock(), 0.07) is None
        clock.now += 0.04  # the loop is busy with others
        await asyncio.sleep(0)
        said = turns.refusal(1, clock(), 0.07)
        await asyncio.gather(first, *waits)
        return [said]

    (said,) = asyncio.run(main())
    assert said is not None and said.startswith("overloaded: ")
