"""Bounded queues in front of a shard's threads."""

import asyncio
import threading
import time

import pytest

from actors.shards.admission import Admission
from common.errors import NotReady, Overloaded

FAR = time.time() + 3600


def test_as_many_run_and_wait_as_may_and_one_more_is_refused():
    async def check():
        queue, gate, running = Admission("write", 2, 3), threading.Event(), []

        def work(i):
            running.append(i)
            assert gate.wait(60)
            return i

        calls = [asyncio.ensure_future(queue.run(FAR, lambda i=i: work(i))) for i in range(5)]
        while len(running) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="max_waiting") as caught:
            await queue.run(FAR, lambda: None)
        assert caught.value.retry_after_s >= 1 and caught.value.status == 429
        assert len(running) == 2
        gate.set()
        assert await asyncio.gather(*calls) == [*range(5)]
        assert await queue.run(FAR, lambda: "again") == "again"

    asyncio.run(check())


def test_a_call_whose_deadline_passed_in_the_queue_is_dropped():
    async def check():
        queue, gate, done = Admission("write", 1, 3), threading.Event(), []
        first = asyncio.ensure_future(queue.run(FAR, lambda: gate.wait(60)))
        late = asyncio.ensure_future(queue.run(time.time() + 0.05, lambda: done.append("late")))
        last = asyncio.ensure_future(queue.run(FAR, lambda: done.append("last")))
        await asyncio.sleep(0.2)
        gate.set()
        with pytest.raises(NotReady) as caught:
            await late
        await asyncio.gather(first, last)
        assert caught.value.code == "late" and done == ["last"]

    asyncio.run(check())


def test_what_the_work_raises_comes_through_and_frees_its_place():
    async def check():
        queue = Admission("read", 1, 0)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await queue.run(FAR, lambda: 1 // 0)
        assert await queue.run(FAR, lambda: 1) == 1

    asyncio.run(check())


def test_the_hint_grows_with_the_time_that_calls_take():
    async def check():
        queue = Admission("write", 1, 10)
        assert queue.hint_s() == 1
        queue._call_s, queue._inside = 2.0, 5
        assert queue.hint_s() == 10

    asyncio.run(check())
