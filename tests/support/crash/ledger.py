"""What writers were told, against what a shard holds after they were killed."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import Conflict
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.crash.writer import NOW, memory_of, secret_of, text_of


@dataclass(slots=True)
class Tried:
    """One operation: `seqs` is None while it is not acknowledged."""

    op: str
    space: str
    ids: list[str]
    after: int  # the highest number acknowledged before it was begun
    seqs: list[int] | None = None
    scrubbed: bool = False


@dataclass(slots=True)
class Findings:
    """Counts over all checks; all but the first two must be 0."""

    operations: int = 0
    memories: int = 0
    lost: int = 0
    partial: int = 0
    misplaced: int = 0
    undead: int = 0
    miscounted: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (
            self.lost or self.partial or self.misplaced or self.undead or self.miscounted or self.broken
        )


class Ledger:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tried: dict[str, Tried] = {}
        self.epochs: list[int] = []
        self.lives: set[str] = set()
        self.broken: list[str] = []
        self._offset = self._highest = 0

    def read(self) -> None:
        """Take in what was appended since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._take(json.loads(line))

    def _take(self, line: dict) -> None:
        if "try" in line:
            self.tried[line["try"]] = Tried(line["op"], line["space"], line["ids"], self._highest)
        elif "ack" in line:
            tried = self.tried[line["ack"]]
            tried.seqs, tried.scrubbed = line["seqs"], line.get("scrubbed", False)
            self._highest = max([self._highest, *tried.seqs])
        elif "epoch" in line:
            self.epochs.append(line["epoch"])
            self.lives.add(line["life"])
        elif "broken" in line:
            self.broken.append(line["broken"])

    def check(self, shard: Shard, disk: bytes, findings: Findings) -> None:
        """Add to `findings` what is wrong with the shard."""
        forgets = {tuple(t.ids): t for t in self.tried.values() if t.op == "forget"}
        used, maybe = Counter(), Counter()
        for tried in self.tried.values():
            if tried.op == "touch":
                maybe.update(tried.ids)
                used.update(tried.ids if tried.seqs is not None else [])
        for op_id, tried in self.tried.items():
            if tried.op == "put":
                self._check_put(shard, op_id, tried, forgets.get(tuple(tried.ids)), findings, used, maybe)
        done = [t for t in self.tried.values() if t.seqs is not None]
        erased = [id for t in done if t.op == "forget" and t.scrubbed for id in t.ids]
        findings.undead += sum(secret_of(id).encode() in disk for id in erased[-20:])
        findings.broken += self.broken
        if (broken := shard.chain.verify()) is not None:
            findings.broken.append(f"the chain breaks at record {broken}")
        if self.epochs != sorted({*self.epochs}) or shard.counts()["epoch"] <= max(self.epochs, default=0):
            findings.broken.append(f"epochs {self.epochs}, now {shard.counts()['epoch']}")

    def _check_put(
        self,
        shard: Shard,
        op_id: str,
        tried: Tried,
        forget: Tried | None,
        findings: Findings,
        used: Counter,
        maybe: Counter,
    ) -> None:
        found = [shard.memories.get(tried.space, id) for id in tried.ids]
        there = [memory is not None for memory in found]
        findings.partial += any(there) != all(there)
        findings.partial += sum(m is not None and m["text"] != text_of(m["id"]) for m in found)
        if tried.seqs is not None and forget is None:
            findings.lost += there.count(False)
        if forget is not None and forget.seqs is not None:
            findings.undead += there.count(True)
        if tried.seqs is None or not all(there):
            return
        seqs = [memory["seq"] for memory in found]
        in_order = seqs == tried.seqs == sorted(seqs) and seqs[0] > tried.after
        findings.misplaced += not in_order
        for memory in found:
            usage = memory["statistics"]["usage"]
            findings.miscounted += not used[memory["id"]] <= usage <= maybe[memory["id"]]

    def retry(self, shard: Shard, findings: Findings) -> None:
        """The last acknowledged puts, sent again, give their first answer and write nothing; where their content
        has been erased, they are told so."""
        before = shard.counts()["seq"]
        forgotten = {tuple(t.ids) for t in self.tried.values() if t.op == "forget"}
        acknowledged = [(o, t) for o, t in self.tried.items() if t.op == "put" and t.seqs is not None]
        for op_id, tried in acknowledged[-5:]:
            try:
                answers = shard.memories.put(
                    MemoryBatch.of([memory_of(id, tried.space) for id in tried.ids]), op_id=op_id, now=NOW
                )
            except Conflict as error:
                findings.misplaced += error.code != "erased" or tuple(tried.ids) not in forgotten
            else:
                findings.misplaced += [answer["seq"] for answer in answers] != tried.seqs
        findings.misplaced += shard.counts()["seq"] != before

    def count(self, findings: Findings) -> None:
        done = [t for t in self.tried.values() if t.seqs is not None]
        findings.operations += len(done)
        findings.memories += sum(len(t.ids) for t in done if t.op == "put")
