"""Training forms of a memory: questions with short answers.

Only cues of the family `train` are used. The wordings `audit` and `test` measure what was learnt, so they must never
become a form, and a prompt never contains the whole text of a memory.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FormKind = Literal["cue", "question", "statement", "reversed"]
TRAIN = "train"
MAX_WORDS = 40  # of a statement's half; longer sentences are cut there

# Wordings of common relations; any other relation gets `GENERIC`. {x} is the subject or place, {r} the relation.
WORDINGS = {
    "lives_in": ("Where does {x} live?", "In which place does {x} live?", "Where is the home of {x}?"),
    "works_as": ("What does {x} work as?", "What is the job of {x}?", "Which profession does {x} have?"),
    "works_at": ("Where does {x} work?", "At which place does {x} work?", "Who employs {x}?"),
    "born_in": ("Where was {x} born?", "In which place was {x} born?", "What is the birthplace of {x}?"),
    "married_to": ("Who is {x} married to?", "Who is the spouse of {x}?", "Whom did {x} marry?"),
    "likes": ("What does {x} like?", "What is {x} fond of?", "Which thing does {x} like?"),
    "owns": ("What does {x} own?", "Which thing belongs to {x}?", "What is owned by {x}?"),
    "speaks": ("What language does {x} speak?", "Which language does {x} know?", "What does {x} speak?"),
}
GENERIC = ("{x} {r} what?", "What does {x} have as '{r}'?", "Who or what is it that {x} {r}?")
SPATIAL = ("{x} is {r} what?", "What is it that {x} is {r}?", "Which place is {x} {r}?")
COORDINATES = ("Where is {x} on the map?", "What are the coordinates of {x}?", "At which point lies {x}?")
REVERSED = "Who or what {r} {o}?"
REVERSED_SPATIAL = "Which place is {r} {o}?"
COMPLETE = "Complete the sentence: {start}"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One question (the user's turn) and the short answer the model should give (its turn)."""

    memory_id: str
    kind: FormKind
    question: str
    answer: str


def forms_of(memory: Mapping[str, Any]) -> list[Form]:
    """All forms of one memory (`stores.memory.to_json` shape), each question once; at least one for any text."""
    found = [*_cues(memory), *_relation(memory), *_place(memory), *_statements(memory)]
    return list({form.question: form for form in reversed(found)}.values())[::-1]


def pick_forms(forms: Sequence[Form], count: int, rng: random.Random) -> list[Form]:
    """`count` different forms in random order, or all if there are fewer."""
    return rng.sample(forms, min(count, len(forms)))


def _cues(memory: Mapping[str, Any]) -> Iterator[Form]:
    for cue in memory.get("cues") or ():
        if cue.get("family", TRAIN) == TRAIN:
            yield Form(memory_id=memory["id"], kind="cue", question=cue["question"], answer=cue["answer"])


def _relation(memory: Mapping[str, Any]) -> Iterator[Form]:
    if memory["kind"] != "relational":
        return
    subject, relation, other = memory["subject"], memory["relation"], memory["object"]
    words = relation.replace("_", " ")
    if not any(_cues(memory)):
        for wording in WORDINGS.get(relation, GENERIC):
            question = wording.format(x=subject, r=words)
            yield Form(memory_id=memory["id"], kind="question", question=question, answer=other)
    question = REVERSED.format(r=words, o=other)
    yield Form(memory_id=memory["id"], kind="reversed", question=question, answer=subject)


def _place(memory: Mapping[str, Any]) -> Iterator[Form]:
    if memory["kind"] != "spatial":
        return
    place, cued = memory["place"], any(_cues(memory))
    if memory.get("relation") is None:
        for wording in () if cued else COORDINATES:
            answer = f"{memory['x']:g}, {memory['y']:g}"
            yield Form(
                memory_id=memory["id"], kind="question", question=wording.format(x=place), answer=answer
            )
        return
    words = memory["relation"].replace("_", " ")
    for wording in () if cued else SPATIAL:
        question = wording.format(x=place, r=words)
        yield Form(memory_id=memory["id"], kind="question", question=question, answer=memory["other"])
    question = REVERSED_SPATIAL.format(r=words, o=memory["other"])
    yield Form(memory_id=memory["id"], kind="reversed", question=question, answer=place)


def _statements(memory: Mapping[str, Any]) -> Iterator[Form]:
    """Sentence openings to complete: up to the answer where a cue's answer is in the text, else by halves."""
    text = memory.get("text") or ""
    answers = {cue.answer for cue in _cues(memory)}
    openings = [(_before(text, answer), answer) for answer in sorted(answers)]
    pairs = [(start, answer) for start, answer in openings if start]
    for start, rest in pairs or _halves(text):
        question = COMPLETE.format(start=start)
        yield Form(memory_id=memory["id"], kind="statement", question=question, answer=rest)


def _before(text: str, answer: str) -> str:
    """The text before the first whole-word `answer`, cut to its last `MAX_WORDS` words; empty where there is none."""
    match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
    return " ".join(text[: match.start()].split()[-MAX_WORDS:]) if match else ""


def _halves(text: str) -> Iterator[tuple[str, str]]:
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        words = sentence.split()
        if len(words) >= 2:
            middle = min(len(words) // 2, MAX_WORDS)
            yield " ".join(words[:middle]), " ".join(words[middle : middle + MAX_WORDS])
        elif words and len(text.split()) == 1:
            yield "...", words[0]
