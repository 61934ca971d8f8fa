"""Targets for the reader: the base model's own answers to scenes, with the memories as text in its prompt."""

import copy
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from models.text.prompt import PromptBuilder
from models.weights.load import LoadedModel
from train.anchors import TOP_K, Anchor
from train.encoders.reader_data import Question, Scene, scene
from train.evaluation.evaluate import contains
from train.generation.chat import SYSTEMS
from train.generation.decode import write
from train.objective import common_start, make_batch, position_logits

ANSWER_TOKENS = 10
HELD_OUT = 10**9  # scenes from this number on are never trained on
AHEAD = 4  # lessons the teacher may be ahead of the student


@dataclass(frozen=True)
class Lesson:
    """A scene as token ids, and what the teacher says. An `Anchor`'s prompt is the tail behind the memories."""

    head: list[int]
    blocks: list[list[int]]
    answers: list[Anchor]
    kinds: dict[str, list[int]]  # taught, asked


class Teacher:
    """The base with the memories as text, a copy of its own: it answers in a thread while the student learns."""

    def __init__(self, loaded: LoadedModel, *, seed: int, scenes: int, questions: int) -> None:
        self._model = copy.deepcopy(loaded.model)
        self._loaded, self._builder = loaded, PromptBuilder(loaded.tokenizer)
        self._seed, self._scenes, self._questions = seed, scenes, questions
        self._made: dict[int, Lesson] = {}

    def lesson(self, number: int) -> Lesson:
        """Of the `number`-th scene shown; a scene that comes again is not asked again."""
        number = number if number >= HELD_OUT else number % self._scenes
        if number not in self._made:
            self._made[number] = self.teach(scene(self._seed, number, self._questions))
        return self._made[number]

    @torch.inference_mode()
    def teach(self, shown: Scene) -> Lesson:
        """Answer greedily; what is right is kept, with how sure the base is of every token."""
        head, blocks = self._builder.head, [self._builder.memory(text) for text in shown.memories]
        system = {"role": "system", "content": SYSTEMS[len(shown.memories[0]) % len(SYSTEMS)]}
        tails = [
            self._builder.tail([system, {"role": "user", "content": each.text}]) for each in shown.questions
        ]
        start = common_start([tail[:-1] for tail in tails])
        ids = [*head, *(token for block in blocks for token in block), *tails[0][:start]]
        row = torch.tensor([ids], device=self._model.device)
        states = self._model.get_decoder()(input_ids=row, use_cache=True).past_key_values
        asked = [tail[start:] for tail in tails]
        texts = write(self._model, asked, self._loaded.end_ids, max_new_tokens=ANSWER_TOKENS, states=states)
        spoken = self._loaded.tokenizer.batch_decode(texts, skip_special_tokens=True)
        right = [is_right(*pair) for pair in zip(spoken, shown.questions, strict=True)]
        kinds: dict[str, list[int]] = {}
        for each, good in zip(shown.questions, right, strict=True):
            taught, of = kinds.get(each.kind, [0, 0])
            kinds[each.kind] = [taught + good, of + 1]
        kept = [number for number, good in enumerate(right) if good]
        if not kept:
            return Lesson(head, blocks, [], kinds)
        batch = make_batch([(asked[i], texts[i]) for i in kept], 0, self._model.device)
        top = position_logits(self._model, batch, states).log_softmax(-1).topk(TOP_K)
        sizes = [len(texts[i]) for i in kept]
        sure = zip(kept, top.values.split(sizes), top.indices.split(sizes), strict=True)
        return Lesson(head, blocks, [Anchor(tails[i], texts[i], p, tokens) for i, p, tokens in sure], kinds)


def lessons_ahead(teacher: Teacher, first: int) -> Generator[Lesson]:
    """Lessons from number `first` on, without end, made while the earlier ones are learnt."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(teacher.lesson, first + i) for i in range(AHEAD))
        while True:
            yield waiting.popleft().result()
            first += 1
            waiting.append(pool.submit(teacher.lesson, first + AHEAD - 1))


def is_right(answer: str, question: Question) -> bool:
    return contains(answer, question.answers) and not contains(answer, question.wrong)
