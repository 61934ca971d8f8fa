"""Every log against the plainest one: a list of bodies and a dict of results."""

import itertools
from hashlib import blake2b

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common.errors import Conflict
from stores.log.base import Operation
from stores.log.record import PLAIN, Op
from tests.support.log_backends import BACKENDS, Backend, draft

names = itertools.count()
bodies = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def machine_on(backend):
    class LogMachine(RuleBasedStateMachine):
        @initialize()
        def begin(self):
            self.name = f"log-{next(names)}"
            self.bodies: list[str | None] = []  # None: erased
            self.results: dict[str, object] = {}  # None: gone with what the operation wrote
            self.writers: list[str] = []
            self.count, self.epoch = 0, 0
            self.log = None
            self.reopen()

        @rule()
        def reopen(self):
            if self.log:
                self.log.close()
            self.log = backend.open(self.name)
            self.epoch += 1

        @rule(
            batch=st.lists(
                st.tuples(st.lists(bodies, max_size=3), st.sets(st.integers(1, 20), max_size=2)),
                min_size=1,
                max_size=4,
            )
        )
        def commit(self, batch):
            operations, last = [], None
            for contents, erase in batch:
                op_id, result = f"op-{len(self.results)}", {"bodies": contents}
                drafts = [draft(0, body=body, vector=body.encode()) for body in contents]
                staged = self.log.stage(op_id, drafts, now=1.5, after=last)
                last = staged[-1] if staged else last
                self.bodies += contents
                self.writers += [op_id] * len(contents)
                self.results[op_id] = result
                self.count += len(contents)
                erase = sorted(seq for seq in erase if seq <= len(self.bodies))
                for seq in erase:
                    self.bodies[seq - 1] = None
                    self.results[self.writers[seq - 1]] = None
                counts = {"gate_attempts": len(contents)}
                operations.append(
                    Operation(
                        op_id=op_id, request="r", records=staged, result=result, erase=erase, counts=counts
                    )
                )
            self.log.commit(operations)

        @rule()
        def scrub(self):
            assert self.log.scrub() and not self.log.scrub_due

        @rule(number=st.integers(0, 60))
        def retry(self, number):
            op_id = f"op-{number}"
            if op_id not in self.results or self.results[op_id] is not None:
                assert self.log.seen(op_id, "r") == self.results.get(op_id)
            for request in ("r", "another") if op_id in self.results else ():
                if request == "another" or self.results[op_id] is None:
                    with pytest.raises(Conflict):
                        self.log.seen(op_id, request)

        @invariant()
        def equal(self):
            if not getattr(self, "log", None):
                return
            found = list(self.log.records())
            assert [None if r.erased else r.content()["body"] for r in found] == self.bodies
            assert [r.vector.decode() for r in found] == [body or "" for body in self.bodies]
            anchor = PLAIN.genesis
            for record in found:
                anchor = blake2b(anchor + record.digest, digest_size=8).digest()
                assert record.op is Op.PUT and record.anchor == anchor
            state = self.log.state()
            assert (state["seq"], state["anchor"]) == (len(found), anchor.hex())
            assert (state["epoch"], state["gate_attempts"]) == (self.epoch, self.count)
            assert self.log.verify() is None
            assert dict(self.log.results()) == self.results

        def teardown(self):
            if getattr(self, "log", None):
                self.log.close()

    return LogMachine


@pytest.mark.parametrize("name", BACKENDS)
def test_a_log_is_a_list_and_a_dict(name, request, tmp_path):
    server = request.getfixturevalue("redis_server") if name == "redis" else None
    backend = Backend(name, tmp_path / f"store-{tmp_path.name}", server)
    run_state_machine_as_test(
        machine_on(backend),
        settings=settings(
            max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=[*HealthCheck]
        ),
    )
