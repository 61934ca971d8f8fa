"""Scorer actors: what they ask of Ray, and that none outlives its pool."""

import os
import signal
import time

import numpy as np
import psutil
import pytest
import ray

from actors.scorers import BASELINE, NULL, ScoreJob, Scorer, ScorerPool, Task, check_capacity
from common.errors import InvalidInput
from models.scoring.hidden_blocks import prefix_of
from tests.support.hidden import naive, without

TASK = Task(0, 1, (BASELINE, 0))


def job(**changes):
    question = {"role": "user", "content": "Where does Ada live?"}
    answer = {"role": "assistant", "content": "Lisbon"}
    fields = {
        "model": "smollm2-135m",
        "dtype": "float32",
        "adapter": "",
        "adapters_dir": "unused",
        "texts": ("Ada lives in Lisbon.",),
        "conversations": ((question, answer),),
        "batch_tokens": 4096,
        "threads": 1,
    }
    return ScoreJob(**{**fields, **changes})


def pid_of(actor):
    return ray.get(actor.pid.remote())


def ended(pid, within_s=30.0):
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def free(resource):
    return ray.available_resources().get(resource, 0)


def wait_for(condition, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_scorer_holds_its_gpu_until_the_pool_ends_also_where_the_consumer_raises(cluster):
    with pytest.raises(ZeroDivisionError), ScorerPool(job(), 1, gpus_per_actor=1) as pool:
        pid = pid_of(pool.actors[0])
        assert wait_for(lambda: free("GPU") == 0 and free("CPU") == 1)
        assert pool.describe()["device"] in ("cpu", "cuda")  # where the GPU is invented, torch finds none
        for _ in pool.run([TASK, Task(0, 1, (BASELINE,))]):
            raise ZeroDivisionError
    assert pool.actors == () and ended(pid)
    assert wait_for(lambda: free("GPU") == 1 and free("CPU") == 2)


def test_rows_behind_a_prefix_are_those_of_one_without_the_block(loaded, builder):
    texts = ("Ada lives in Lisbon.", "Bo bakes at night.", "Cy keeps a goat.")
    talks = tuple(
        ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
        for asked, said in [("Where does Ada live?", "Lisbon"), ("What does Cy keep?", "A goat")]
    )
    scorer = Scorer(job(texts=texts, conversations=talks, context="prefix", batch_tokens=64))
    found = scorer.run(Task(0, 2, (BASELINE, NULL, 0, 1, 2)))
    transcripts = [builder.transcript(talk, memories=True) for talk in talks]
    prefix = prefix_of(loaded.model, builder.head, [builder.memory(text) for text in texts])
    base = naive(loaded.model, prefix, transcripts)
    hidden = [naive(loaded.model, without(prefix, [i], {str(i)}), transcripts) for i in range(3)]
    assert found == pytest.approx(np.stack([base, base, *hidden]), abs=5e-4)
    assert (base - hidden).argmax(axis=0).tolist() == [0, 2]


def test_replacements_of_dead_actors_end_with_the_pool(cluster):
    with ScorerPool(job(), 1) as pool:
        first = pid_of(pool.actors[0])
        os.kill(first, signal.SIGKILL)
        [result] = pool.run([TASK])
        assert result.error is None
        [replacement] = pool.actors
        second = pid_of(replacement)
        assert second != first and psutil.pid_exists(second)
    assert ended(first) and ended(second)


def test_demands_that_no_node_meets_are_refused_at_once_with_the_sizes(cluster):
    with pytest.raises(InvalidInput, match=r"gpus_per_actor = 2: .* room for 0 .*nodes: 2 CPUs with 1 GPUs"):
        ScorerPool(job(), 1, gpus_per_actor=2)
    with pytest.raises(InvalidInput, match=r"score\.actors = 3 .* room for 2 "):
        ScorerPool(job(), 3)


@pytest.mark.parametrize(
    ("nodes", "gpus", "room"),
    [
        ([], 0, 0),
        ([{"CPU": 4}], 0, 4),
        ([{"CPU": 4}], 0.1, 0),
        ([{"CPU": 4, "GPU": 1}], 0.5, 2),
        ([{"CPU": 4, "GPU": 2}], 0.6, 2),  # one on each device: none takes parts of two
        ([{"CPU": 8, "GPU": 1}], 0.2, 5),
        ([{"CPU": 1, "GPU": 8}], 1, 1),
        ([{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 1}], 2, 1),
    ],
)
def test_room_of_a_cluster(nodes, gpus, room):
    if room:
        check_capacity(nodes, room, gpus)
    with pytest.raises(InvalidInput):
        check_capacity(nodes, room + 1, gpus)
