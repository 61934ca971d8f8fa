"""Random operations, restarts among them, on a shard and on a plain dict: both hold the same."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import Conflict
from stores.memory.memory import to_json
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, ids, memory, open_shard, unit

names = st.sampled_from([f"m{i}" for i in range(8)])
namespaces = st.sampled_from(["acme", "other"])


class ShardAgainstDict(RuleBasedStateMachine):
    """Any sequence of operations, retries and restarts leaves what a dict would hold."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.shard = open_shard(Path(self.folder.name) / "shard")
        self.model: dict[tuple[str, str], SimpleNamespace] = {}
        self.ops = 0

    def teardown(self):
        self.shard.close()
        self.folder.cleanup()

    def twice(self, call):
        """Every operation is sent twice: the second must change nothing and answer the same."""
        self.ops += 1
        first = call(f"op-{self.ops}")
        assert call(f"op-{self.ops}") == first
        return first

    @rule(
        namespace=namespaces,
        batch=st.lists(st.tuples(names, st.integers(0, 1), st.integers(1, 5)), max_size=4),
    )
    def put(self, namespace, batch):
        items = [
            (memory(name, namespace=namespace, text=f"{name} v{version}", time=t), unit(version))
            for name, version, t in batch
        ]
        stored = {key: entry.versions for key, entry in self.model.items()}
        wanted: dict = {}
        clash = any(
            to_json(m) not in stored.get((m.namespace, m.id), [to_json(m)])
            if (m.namespace, m.id) in stored
            else wanted.setdefault((m.namespace, m.id), to_json(m)) != to_json(m)
            for m, _ in items
        )
        if clash:
            with pytest.raises(Conflict):
                self.shard.memories.put(MemoryBatch.of(items), op_id="clash", now=NOW)
            return
        answers = self.twice(
            lambda op_id: self.shard.memories.put(MemoryBatch.of(items), op_id=op_id, now=NOW)
        )
        for (m, vector), answer in zip(items, answers, strict=True):
            key = m.namespace, m.id
            assert answer["stored"] and answer["id"] == m.id and answer["anchor"] and answer["seq"]
            assert answer["status"] == ("existing" if key in stored else answer["status"])
            self.model.setdefault(key, self.fresh(m, vector))
        statuses = [answer["status"] for answer in answers]
        assert statuses.count("new") == len(wanted)
        assert set(statuses) <= {"new", "existing", "duplicate"}

    @staticmethod
    def fresh(m, vector):
        return SimpleNamespace(
            memory=m, vector=vector, usage=0, salience=0.0, scored=False, count=1, versions=[to_json(m)]
        )

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def put_a_twin(self, data):
        """The same words under another id: counted where they are, not written."""
        (namespace, _), entry = data.draw(st.sampled_from(sorted(self.model.items(), key=str)))
        loud = memory(
            f"twin-{self.ops}",
            namespace=namespace,
            text=f" {entry.memory.text.upper()}! ",
            time=entry.memory.time,
        )
        items = [(loud, entry.vector)]
        (answer,) = self.twice(
            lambda op_id: self.shard.memories.put(MemoryBatch.of(items), op_id=op_id, now=NOW)
        )
        twins = [
            other
            for (space, _), other in self.model.items()
            if space == namespace and other.memory.text == entry.memory.text
        ]
        assert answer["status"] == "duplicate"
        twin = self.model[namespace, answer["id"]]
        assert twin in twins and self.shard.memories.get(namespace, loud.id) is None
        twin.count += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), version=st.integers(0, 3), t=st.integers(1, 5), stale=st.booleans())
    def supersede(self, data, version, t, stale):
        key = data.draw(st.sampled_from(sorted(self.model)))
        namespace, name = key
        entry = self.model[key]
        new = memory(name, namespace=namespace, text=f"{name} v{version}", time=t)
        generation = self.shard.memories.get(namespace, name)["statistics"]["generation"] + stale
        revise = lambda op_id: self.shard.memories.supersede(  # noqa: E731
            new, unit(version), generation=generation, op_id=op_id, now=NOW
        )
        if stale:
            with pytest.raises(Conflict, match="generation"):
                revise("stale")
            return
        assert self.twice(revise)["supersedes"] == generation
        entry.memory, entry.vector = new, unit(version)
        entry.versions.append(to_json(new))

    @rule(namespace=namespaces, chosen=st.lists(names, unique=True, max_size=3))
    def touch(self, namespace, chosen):
        result = self.twice(lambda op_id: self.shard.memories.touch(namespace, chosen, op_id=op_id, now=NOW))
        assert sorted(result["touched"] + result["unknown"]) == sorted(chosen)
        for name in result["touched"]:
            self.model[namespace, name].usage += 1

    @rule(namespace=namespaces, chosen=st.dictionaries(names, st.floats(-5, 5), max_size=3))
    def score(self, namespace, chosen):
        rows = list(chosen.items())
        result = self.twice(lambda op_id: self.shard.memories.score(namespace, rows, op_id=op_id, now=NOW))
        for name in result["scored"]:
            entry, measured = self.model[namespace, name], max(0.0, chosen[name])
            entry.salience = 0.7 * entry.salience + 0.3 * measured if entry.scored else measured
            entry.scored = True

    @rule(namespace=namespaces, chosen=st.lists(names, max_size=3))
    def forget_ids(self, namespace, chosen):
        self.check_forgotten(namespace, {"ids": chosen}, lambda m: m.id in chosen)

    @rule(namespace=namespaces, t=st.integers(1, 5))
    def forget_where(self, namespace, t):
        where = {"field": "time", "op": "lte", "value": t}
        self.check_forgotten(namespace, {"where": where}, lambda m: m.time <= t)

    @precondition(lambda self: len(self.model) > 5)
    @rule(namespace=namespaces)
    def forget_everything(self, namespace):
        self.check_forgotten(namespace, {"everything": True}, lambda m: True)

    def check_forgotten(self, namespace, how, chosen):
        gone = {key for key, entry in self.model.items() if key[0] == namespace and chosen(entry.memory)}
        erased = sum(len(self.model[key].versions) + self.model[key].count - 1 for key in gone)
        receipt = self.twice(lambda op_id: self.shard.erasure.forget(namespace, **how, op_id=op_id, now=NOW))
        assert {id for id in receipt["forgotten"] if "twin" not in id} == {name for _, name in gone}
        assert (receipt["log_records"], receipt["index_rows"]) == (erased, len(gone)) and receipt["scrubbed"]
        for key in gone:
            del self.model[key]

    @rule()
    def reopen(self):
        before = self.shard.counts()
        self.shard.close()
        self.shard = open_shard(Path(self.folder.name) / "shard")
        assert self.shard.counts() == {**before, "epoch": before["epoch"] + 1}

    @invariant()
    def holds_what_the_dict_holds(self):
        for namespace in ("acme", "other"):
            mine = {name: entry for (space, name), entry in self.model.items() if space == namespace}
            ordered = sorted(mine, key=lambda name: (mine[name].memory.time, name))
            listed = self.shard.memories.list(namespace)
            assert ids(listed) == ordered
            for found in listed:
                entry = mine[found["id"]]
                assert to_json(entry.memory).items() <= found.items()
                assert found["statistics"]["usage"] == entry.usage
                assert found["statistics"]["count"] == entry.count
                history = self.shard.memories.history(namespace, found["id"])
                assert [version["content"] for version in reversed(history)] == entry.versions
                assert found["statistics"]["salience"] == pytest.approx(entry.salience)
                assert self.shard.memories.get(namespace, found["id"]) == found
            hits = self.shard.search.find(namespace, unit(0), 100, retrieval="flat")
            assert sorted(ids(hits)) == sorted(mine)
            for hit in hits:
                assert hit["score"] == pytest.approx(unit(0) @ mine[hit["memory"]["id"]].vector, abs=1e-5)
            assert sorted(self.shard.memories.statistics(namespace)["id"].to_pylist()) == sorted(mine)
        assert self.shard.counts()["memories"] == len(self.model)

    @rule()
    def verify(self):
        assert self.shard.chain.verify() is None


TestShardAgainstDict = ShardAgainstDict.TestCase
TestShardAgainstDict.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
