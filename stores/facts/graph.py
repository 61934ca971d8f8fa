"""The relational store: facts (subject, relation, object) with confidence, provenance and validity.

A fact holds from `start` on (`valid_from`, or the time of the memory) until it ends: at the `valid_to` of its
newest assertion, when it was closed, or, for a functional relation, when a rival starts: a fact with the same subject
and another object. The end by a rival is computed, not stored, so that a fact written late is ordered by its start,
and a fact whose rival is forgotten holds again.

Names are compared by `names.normalise` and through aliases; a relation and its inverse are one relation.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from operator import itemgetter

from common.config import FUNCTIONAL_RELATIONS, INVERSE_RELATIONS
from stores.facts import traversal
from stores.facts.decision import Closing, Decision
from stores.facts.fact import (
    ALIAS_RELATIONS,
    PLACE,
    Assertion,
    Fact,
    Json,
    Key,
    TimelineEntry,
    Triple,
    keys,
    next_rival,
    not_a_triple,
    run_before,
)
from stores.facts.names import Aliases, Mentions, normalise, normalise_relation
from stores.locks import Took

_AFTER_ALL = 1 << 62  # the `seq` of a fact that is only planned


def _at_once(things: int) -> None:
    """A progress callback that never yields."""


class FactGraph:
    """The facts of one namespace. `plan` is pure; `add`, `aggregate`, `close` and `remove` apply records.

    Many threads may read at once: they fill one cache with equal values.
    """

    def __init__(
        self,
        *,
        functional: Iterable[str] = FUNCTIONAL_RELATIONS,
        inverses: Mapping[str, str] = INVERSE_RELATIONS,
        aliases: Mapping[str, str] | None = None,
        default_confidence: float = 0.9,
    ) -> None:
        """`functional` relations have one object at a time; `inverses` map a relation to its reverse (to
        itself if it is symmetric); `aliases` map a name to the name it stands for."""
        self._functional = frozenset(map(normalise_relation, functional))
        self._inverse: dict[str, str] = {}
        for one, other in inverses.items():
            one, other = normalise_relation(one), normalise_relation(other)
            self._inverse |= {one: other, other: one}
        self._aliases = Aliases()
        for name, known in (aliases or {}).items():
            self._aliases.link(normalise(name), normalise(known), "")
        self._default_confidence = default_confidence
        self._facts: dict[str, Fact] = {}
        self._assertions: dict[str, str] = {}  # id of an assertion -> id of its fact
        self._index: dict[Key, dict[str, Fact]] = {}
        self._mentions = Mentions()
        self._closed_by: dict[str | None, set[str]] = {}
        self._timelines: dict[tuple[str, str], list[TimelineEntry]] = {}  # cache, maintained by `add`

    def __len__(self) -> int:
        return len(self._facts)

    # Writing

    def plan(self, memory: Json) -> Decision:
        """What writing `memory` (the API's shape) would do; changes nothing."""
        if reason := not_a_triple(memory):
            return Decision(action="route", reason=reason)
        if into := self._assertions.get(memory["id"]):
            fact = self._facts[into]
            reason = "told before under this id"
            return Decision(action="existing", reason=reason, into=into, confidence=fact.confidence)
        new = self._read(memory, seq=_AFTER_ALL)
        closings = self._closings(new)
        end = min([new.end, *(c.valid_to for c in closings if c.id == new.id)])
        for duplicate in self._matches(new.triple):
            if new.start < self.end(duplicate) and duplicate.start < end:
                merged = replace(new, assertions=[*duplicate.assertions, *new.assertions])
                reason = f"the same fact, told {len(merged.assertions)} times"
                return Decision(
                    action="aggregate", reason=reason, into=duplicate.id, confidence=merged.confidence
                )
        reason = f"contradicts {len(closings)} earlier or later facts" if closings else "a new fact"
        return Decision(action="insert", reason=reason, confidence=new.confidence, closes=tuple(closings))

    def add(self, memory: Json, seq: int) -> None:
        """Add a relational memory for which `plan` decided `insert`; `seq` is its record's."""
        fact = self._read(memory, seq)
        self._facts[fact.id] = fact
        self._assertions[fact.id] = fact.id
        for key in keys(fact.triple):
            self._index.setdefault(key, {})[fact.id] = fact
        subject, relation, object = fact.triple
        self._mentions.add(subject)
        self._mentions.add(object)
        if relation in ALIAS_RELATIONS:
            self._aliases.link(subject, object, fact.id)
            self._timelines.clear()
        for one, functional, other in self._functional_readings(fact.triple):
            if (timeline := self._timelines.get((one, functional))) is not None:
                insort(timeline, (fact.start, fact.seq, other, fact), key=PLACE)

    def aggregate(self, into: str, memory: Json) -> None:
        """Add an assertion of the fact `into`; ignored if the fact is gone or has that assertion."""
        fact = self._facts.get(into)
        if fact and not self._assertions.get(memory["id"]):
            fact.assertions.append(self._assertion(memory))
            self._assertions[memory["id"]] = into
            self._forget_timelines(fact)

    def close(self, id: str, valid_to: float, by: str | None = None) -> None:
        """End a fact at `valid_to`; with `by`, only as long as that fact is there."""
        if id in self._facts and (by is None or by in self._facts):
            self._facts[id].closed[by] = valid_to
            self._closed_by.setdefault(by, set()).add(id)

    def remove(self, id: str) -> None:
        """Forget a fact, or one assertion of it. Facts that it closed hold again."""
        into = self._assertions.pop(id, None)
        if into is None:
            return
        fact = self._facts[into]
        self._forget_timelines(fact)
        if into != id:
            fact.assertions = [assertion for assertion in fact.assertions if assertion.id != id]
            return
        del self._facts[id]
        for assertion in fact.assertions:
            self._assertions.pop(assertion.id, None)
        for key in keys(fact.triple):
            del self._index[key][id]
            if not self._index[key]:
                del self._index[key]
        self._mentions.discard(fact.triple[0])
        self._mentions.discard(fact.triple[2])
        if fact.triple[1] in ALIAS_RELATIONS:
            self._aliases.unlink(id)
            self._timelines.clear()
        for other in self._closed_by.pop(id, ()):
            if other in self._facts:
                del self._facts[other].closed[id]

    # Reading. A long reader calls the progress callback `took` between two facts: they may change then

    def fact_of_assertion(self, id: str) -> str | None:
        """The id of the fact that has the assertion `id`."""
        return self._assertions.get(id)

    def query(
        self,
        subject: str | None = None,
        relation: str | None = None,
        object: str | None = None,
        *,
        at: float | None = None,
        took: Took = _at_once,
    ) -> list[Json]:
        """Facts that match what is given, in order of (start, seq); see `describe`.

        `at` (seconds) keeps those that hold then; without it the whole history comes back. Where a
        relation has an inverse, facts stated in the other direction are found and turned round.
        """
        took(1)
        found = {}
        for fact, turned in [*self._pattern(subject, relation, object)]:
            took(1)
            if self._is_here(fact) and (at is None or self.holds(fact, at)):
                row = self.describe(fact, turned)
                found[fact.id, turned] = (row["valid_from"], fact.seq, turned), row
        return [row for _, row in sorted(found.values(), key=itemgetter(0))]

    def solve(
        self,
        patterns: Iterable[Triple],
        *,
        at: float | None = None,
        at_most: int | None = None,
        took: Took = _at_once,
    ) -> list[traversal.Solution]:
        """All ways to fill the variables (`?x`) of several patterns at once, the newest facts first. Raises
        `InvalidInput` if one of the joins has more than `at_most`."""
        return traversal.solve(self, [*patterns], at, at_most, took)

    def recall(
        self,
        text: str,
        *,
        k: int = 10,
        at: float | None = None,
        entities: Iterable[str] = (),
        took: Took = _at_once,
    ) -> list[Json]:
        """The `k` facts nearest to the entities named in `text` over several hops, best first.

        Personalised PageRank from those entities (and from `entities`); a fact's `score` is the mean of
        its two ends' rank, times its confidence. Empty if no entity is known.
        """
        seeds = [*self._mentions.find(text), *map(normalise, entities)]
        edges = partial(self._edges, at=at, took=took)
        ranks = traversal.pagerank({self.canonical(seed): 1.0 for seed in seeds}, edges, took=took)
        found: dict[str, tuple[float, int, Fact]] = {}
        for entity in ranks:
            for fact, other, confidence in edges(entity):
                score = confidence * (ranks[entity] + ranks.get(other, 0.0)) / 2.0
                found[fact.id] = -score, fact.seq, fact
        best = sorted(found.values(), key=PLACE)[:k]
        return [self.describe(fact) | {"score": -score} for score, _, fact in best if self._is_here(fact)]

    def path(
        self, a: str, b: str, *, at: float | None = None, max_hops: int = 6, took: Took = _at_once
    ) -> list[Json] | None:
        """The shortest chain of facts from `a` to `b`, read in any direction; None if there is none."""
        start, goal = (self.canonical(normalise(name)) for name in (a, b))
        facts = traversal.shortest(start, goal, partial(self._edges, at=at, took=took), max_hops)
        return None if facts is None else [self.describe(fact) for fact in facts]

    def canonical(self, name: str) -> str:
        """The name that stands for a normalised name and its aliases."""
        return self._aliases.canonical(name)

    def describe(self, fact: Fact, turned: bool = False) -> Json:
        """`{id, subject, relation, object, confidence, valid_from, valid_to, provenance}`; `valid_to` is
        None while the fact holds. `turned`: read against its stated direction."""
        subject, relation, object = fact.stated
        if turned:
            inverse = self._inverse[normalise_relation(relation)]
            subject, relation, object = object, inverse, subject
        end = self.end(fact)
        return {
            "id": fact.id,
            "subject": subject,
            "relation": relation,
            "object": object,
            "confidence": fact.confidence,
            "valid_from": fact.start,
            "valid_to": None if end == math.inf else end,
            "provenance": [{"id": t.id, "confidence": t.confidence, **t.source} for t in fact.assertions],
        }

    def near(self, memory: Json) -> set[str]:
        """Ids of the facts on which the decision about a relational memory depends: the same triple, and the rivals of
        its functional relation."""
        triple = self._read(memory, seq=_AFTER_ALL).triple
        found = {fact.id for fact in self._matches(triple)}
        for subject, relation, _ in self._functional_readings(triple):
            found |= {fact.id for *_, fact in self._timeline(subject, relation)}
        return found

    def validity(self, id: str) -> tuple[float, float] | None:
        """Start and end (seconds; infinite while it holds) of the fact `id`, ends by rivals counted; None if there is
        no such fact."""
        fact = self._facts.get(id)
        return None if fact is None else (fact.start, self.end(fact))

    def holds(self, fact: Fact, at: float) -> bool:
        return fact.start <= at < self.end(fact)

    def end(self, fact: Fact) -> float:
        """When the fact ends, rivals counted; infinite while it holds."""
        ends = [fact.end]
        for subject, relation, object in self._functional_readings(fact.triple):
            timeline = self._timeline(subject, relation)
            place = bisect_right(timeline, (fact.start, fact.seq), key=PLACE)
            ends += [rival[0] for rival in next_rival(timeline, place, object)]
        return min(ends)

    # Parts

    def _is_here(self, fact: Fact) -> bool:
        """True if its id still names this fact."""
        return self._facts.get(fact.id) is fact

    def _read(self, memory: Json, seq: int) -> Fact:
        stated = memory["subject"], memory["relation"], memory["object"]
        plain = normalise(stated[0]), normalise_relation(stated[1]), normalise(stated[2])
        triple = self._oriented(plain)
        return Fact(
            id=memory["id"],
            seq=seq,
            stated=stated,
            triple=triple,
            flipped=triple != plain,
            assertions=[self._assertion(memory)],
        )

    def _assertion(self, memory: Json) -> Assertion:
        given, start, end = (memory.get(name) for name in ("confidence", "valid_from", "valid_to"))
        return Assertion(
            id=memory["id"],
            confidence=self._default_confidence if given is None else given,
            start=memory["time"] if start is None else start,
            end=math.inf if end is None else end,
            source={
                "time": memory["time"],
                "conversation": memory.get("conversation"),
                "source": (memory.get("context") or {}).get("source"),
            },
        )

    def _oriented(self, triple: Triple) -> Triple:
        """A relation and its inverse are kept under the name that sorts first; a symmetric one has its
        smaller name in front."""
        subject, relation, object = triple
        inverse = self._inverse.get(relation)
        if inverse is None or (relation, subject) <= (inverse, object if inverse == relation else subject):
            return triple
        return object, inverse, subject

    def _pattern(
        self, subject: str | None, relation: str | None, object: str | None
    ) -> Iterator[tuple[Fact, bool]]:
        """Facts that match, with whether the pattern reads them against the stated direction."""
        s, o = (None if name is None else normalise(name) for name in (subject, object))
        r = None if relation is None else normalise_relation(relation)
        for fact in self._candidates(s, r, o):
            yield fact, fact.flipped if (s, r, o) != (None, None, None) else False
        if s is r is o is None:
            turned: Iterable[Fact] = ()
        elif r is None:
            turned = (f for f in self._candidates(o, None, s) if f.triple[1] in self._inverse)
        else:
            turned = self._candidates(o, self._inverse[r], s) if r in self._inverse else ()
        for fact in turned:
            yield fact, not fact.flipped

    def _candidates(self, subject: str | None, relation: str | None, object: str | None) -> Iterator[Fact]:
        """Facts by their stored triple, aliases included."""
        if subject is relation is object is None:
            yield from self._facts.values()
            return
        subjects = [None] if subject is None else self._aliases.group(subject)
        objects = [None] if object is None else self._aliases.group(object)
        for key in product(subjects, (relation,), objects):
            yield from self._index.get(key, {}).values()

    def _matches(self, triple: Triple) -> Iterator[Fact]:
        """Facts with the same stored triple, aliases counted; of a symmetric relation in either order."""
        subject, relation, object = triple
        yield from self._candidates(subject, relation, object)
        if self._inverse.get(relation) == relation:
            yield from self._candidates(object, relation, subject)

    def _functional_readings(self, triple: Triple) -> Iterator[Triple]:
        """(subject, relation, object) in canonical names for which only one object may hold."""
        subject, relation, object = triple
        if relation in self._functional:
            yield self.canonical(subject), relation, self.canonical(object)
        inverse = self._inverse.get(relation)
        if inverse in self._functional:
            yield self.canonical(object), inverse, self.canonical(subject)

    def _timeline(self, subject: str, relation: str) -> list[TimelineEntry]:
        """Facts of one functional (subject, relation) in order of (start, seq)."""
        key = subject, relation
        if key not in self._timelines:
            found = {}
            for fact in self._candidates(subject, relation, None):
                found[fact.id] = fact.start, fact.seq, self.canonical(fact.triple[2]), fact
            if inverse := self._inverse.get(relation):
                for fact in self._candidates(None, inverse, subject):
                    found[fact.id] = fact.start, fact.seq, self.canonical(fact.triple[0]), fact
            self._timelines[key] = sorted(found.values(), key=PLACE)
        return self._timelines[key]

    def _forget_timelines(self, fact: Fact) -> None:
        for subject, relation, _ in self._functional_readings(fact.triple):
            self._timelines.pop((subject, relation), None)

    def _closings(self, new: Fact) -> list[Closing]:
        """Which facts end because of `new`, and whether it ends because of an earlier written one."""
        found: dict[str, Closing] = {}
        end = new.end
        for subject, relation, object in self._functional_readings(new.triple):
            timeline = self._timeline(subject, relation)
            place = bisect_right(timeline, (new.start, new.seq), key=PLACE)
            for _, _, other, rival in timeline[run_before(timeline, place) : place]:
                if other != object and new.start < self.end(rival):
                    found[rival.id] = Closing(id=rival.id, valid_to=new.start, by=new.id)
            for start, _, _, rival in next_rival(timeline, place, object):
                if start < end:
                    end = start
                    found[new.id] = Closing(id=new.id, valid_to=end, by=rival.id)
        return [*found.values()]

    def _edges(
        self, entity: str, at: float | None, took: Took = _at_once
    ) -> Iterator[tuple[Fact, str, float]]:
        """Facts about an entity in order of `seq`, the entity at the other end, and the confidence."""
        found = [
            (fact, end)
            for name in self._aliases.group(entity)
            for key, end in (((name, None, None), 2), ((None, None, name), 0))
            for fact in self._index.get(key, {}).values()
        ]
        for fact, end in sorted(found, key=lambda pair: (pair[0].seq, pair[1])):
            took(1)
            if self._is_here(fact) and (at is None or self.holds(fact, at)):
                yield fact, self.canonical(fact.triple[end]), fact.confidence
