"""A LoRA that teaches a model to read memories injected as blocks that do not see each other. Open `train` first.

The teacher is the base model itself with the same memories as text: its own answer, where it is right, and its own
probabilities at every token. The student is the base with the LoRA, with every memory encoded alone behind the head
*by the student* and laid together as `models.prefix.assemble` lays them at serving (policy `none`), so gradients pass
through the encoding. What is minimised is KL(teacher || student) on the answer, and on text without memory that the
base wrote itself (`train.anchors`), so that the model stays what it is.

One step is one scene (`train.reader_data`): its memories are encoded once, and all its questions stand behind them.
Block-attention fine-tuning: arXiv 2409.15355; here without any label or text from outside.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor

from common.errors import InvalidInput
from common.files import read_json, write_json
from models.kv import prefix as kv
from models.weights.load import LoadedModel
from train.anchors import Anchor, Anchors, anchor_batch, anchor_kl, batch_kl, load_or_make
from train.encoders.reader_data import data_digest
from train.encoders.reader_teacher import HELD_OUT, Lesson, Teacher, lessons_ahead
from train.evaluation.evaluate import distractors, sanity_accuracy
from train.evaluation.sanity import sanity_items
from train.objective import position_logits, row_mean

ADAPTER = "adapter"
OPTIMIZER = "optimizer.pt"
CURSOR = "cursor.json"  # written last: a checkpoint without it is not one
WARM_UP = 30  # steps
HOPELESS = 200  # scenes without one right answer: no teacher


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """`scenes` different ones, again and again; `questions` of a scene at most, before those are left out that the
    teacher gets wrong; `anchor_weight` of the KL without memory."""

    steps: int = 600
    scenes: int = 300
    lr: float = 5e-4
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    questions: int = 4
    anchors: int = 18
    anchor_weight: float = 0.3
    held_out: int = 8
    checkpoint_every: int = 50
    seed: int = 1337


@dataclass
class Cursor:
    """Where the training stands; with adapter and optimizer all that a restart needs."""

    next_scene: int = 0
    steps: int = 0
    asked: int = 0
    taught: int = 0  # questions the teacher answered rightly
    memories: int = 0
    seconds: float = 0.0
    resumes: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)  # taught, asked
    held_out: dict[str, float] = field(default_factory=dict)  # step -> KL, nats a token
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    loaded: LoadedModel, config: ReaderConfig, out: Path, say: Callable[[str], None] = print
) -> tuple[Path, dict[str, Any]]:
    """Train, or go on after the last checkpoint in `out`. Returns the PEFT folder and its manifest.

    Raises `InvalidInput` for a model that answers nothing rightly even with the memories as text.
    """
    anchors = load_or_make(
        out, loaded.model, loaded.tokenizer, loaded.digest,
        others=(), count=config.anchors, seed=config.seed,
    )  # fmt: skip
    teacher = Teacher(loaded, seed=config.seed, scenes=config.scenes, questions=config.questions)
    model = add_lora(loaded.model, config)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=0.0)
    cursor = _resume(out, model, optimizer)
    held = [lesson for i in range(config.held_out) if (lesson := teacher.lesson(HELD_OUT + i)).answers]
    if not cursor.steps:
        cursor.held_out["0"] = held_out_loss(model, held)
        say(f"held out before: {cursor.held_out['0']:.3f}")
    lessons = lessons_ahead(teacher, cursor.next_scene)
    while cursor.steps < config.steps:
        started = time.monotonic()
        lesson = next(lessons)
        _count(cursor, lesson, config.scenes)
        if cursor.next_scene >= HOPELESS and not cursor.taught:
            raise InvalidInput(
                f"model {loaded.name!r} answered none of {cursor.asked} questions with the memories as text, so it "
                "cannot teach; train a larger one",
                param="model",
            )
        if lesson.answers:
            losses = _step(model, optimizer, lesson, anchors, config, cursor.steps)
            cursor.steps += 1
            cursor.history.append({"step": cursor.steps, **losses})
        cursor.seconds += time.monotonic() - started
        if lesson.answers and cursor.steps % 20 == 0:
            say(_progress(cursor, config))
        if lesson.answers and (cursor.steps % config.checkpoint_every == 0 or cursor.steps == config.steps):
            cursor.held_out[str(cursor.steps)] = held_out_loss(model, held)
            say(f"step {cursor.steps}: held out {cursor.held_out[str(cursor.steps)]:.3f}")
            _save(out, model, optimizer, cursor)
    lessons.close()
    plain = {"after": check_plain(model, loaded.tokenizer, anchors.held_out, config.seed)}
    with model.disable_adapter():
        plain["before"] = check_plain(model, loaded.tokenizer, anchors.held_out, config.seed)
    return out / _folder(cursor.steps) / ADAPTER, {**manifest(loaded, config, cursor), "plain": plain}


def add_lora(model: Any, config: ReaderConfig) -> PeftModel:
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora)


def manifest(loaded: LoadedModel, config: ReaderConfig, cursor: Cursor) -> dict[str, Any]:
    """What is kept beside the published adapter: where it comes from and what it took."""
    last, scenes = cursor.history[-50:], min(cursor.next_scene, config.scenes)
    return {
        "purpose": "reader",
        "model_digest": loaded.digest,
        "data_digest": data_digest(config.seed, scenes, config.questions),
        "created": time.time(),
        "steps": cursor.steps,
        "scenes": scenes,
        "memories": cursor.memories,
        "questions": {"asked": cursor.asked, "taught": cursor.taught, "by_kind": cursor.kinds},
        "loss": sum(each["loss"] for each in last) / len(last) if last else None,
        "held_out": cursor.held_out,
        "config": asdict(config),
    }


# Student


def read_logits(model: PeftModel, lesson: Lesson, inverse_frequency: Tensor) -> Tensor:
    """The student's logits `[positions, vocabulary]` at the tokens of the lesson's answers, memories injected."""
    prefix = student_prefix(model, lesson, inverse_frequency)
    batch = anchor_batch(lesson.answers, 0, model.device)
    return position_logits(model, batch, kv.as_cache(prefix.lay(), model.config))


def student_prefix(model: PeftModel, lesson: Lesson, inverse_frequency: Tensor) -> kv.Prefix:
    """As `models.prefix` encodes and assembles it, policy `none`, but with gradients through the encoding."""
    head, states = _encode(model, lesson)
    blocks = [
        kv.KVBlock(memory_id="", fingerprint="", ids=tuple(ids), text="", states=each, width=len(ids))
        for ids, each in zip(lesson.blocks, states, strict=True)
    ]
    return kv.assemble(head, blocks[::-1], inverse_frequency, kv.INDEPENDENT)  # takes the most relevant first


def _encode(model: PeftModel, lesson: Lesson) -> tuple[Tensor, list[Tensor]]:
    """States of the head and of each block alone behind it, each `[layers, 2, kv_heads, tokens, head_dim]`."""
    decoder, start, count = model.get_decoder(), len(lesson.head), len(lesson.blocks)
    row = torch.tensor([lesson.head], device=model.device)
    cache = decoder(input_ids=row, use_cache=True).past_key_values
    head = kv.stacked(cache)[:, :, 0]
    cache.batch_repeat_interleave(count)
    longest = max(map(len, lesson.blocks))
    # Padding comes after a block's tokens, so no token attends to it.
    ids = torch.tensor([block + [0] * (longest - len(block)) for block in lesson.blocks], device=model.device)
    decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    states = kv.stacked(cache)
    return head, [states[:, :, i, :, start : start + len(block)] for i, block in enumerate(lesson.blocks)]


def lesson_loss(model: PeftModel, lesson: Lesson) -> Tensor:
    """KL(teacher || student) in nats a token, mean over the lesson's answers."""
    frequency = model.get_base_model().model.rotary_emb.inv_freq
    return _mean_kl(read_logits(model, lesson, frequency), lesson.answers, model.device)


def _mean_kl(logits: Tensor, anchors: Sequence[Anchor], device: Any) -> Tensor:
    weights = torch.ones(len(anchors), device=device)
    return row_mean(batch_kl(logits, anchors), anchor_batch(anchors, 0, device), weights)


@torch.no_grad()
def held_out_loss(model: PeftModel, lessons: Sequence[Lesson]) -> float:
    """Mean loss of lessons that are never trained on; 0 where there are none."""
    return sum(float(lesson_loss(model, lesson)) for lesson in lessons) / max(1, len(lessons))


def _step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    anchors: Anchors,
    config: ReaderConfig,
    number: int,
) -> dict[str, float]:
    """One optimiser step: the lesson, and an anchor in every second one, short and long ones by turns."""
    loss = lesson_loss(model, lesson)
    loss.backward()
    kl = torch.zeros(())
    pool = anchors.wide if number % 4 else anchors.near
    if pool and number % 2 == 0:
        chosen = [random.Random(f"{config.seed}/{number}").choice(pool)]
        kl = _mean_kl(position_logits(model, anchor_batch(chosen, 0, model.device)), chosen, model.device)
        (config.anchor_weight * kl).backward()
    for group in optimizer.param_groups:
        # Linear warm-up, then linear down to 0.
        group["lr"] = config.lr * min(1.0, (number + 1) / WARM_UP) * (1 - number / config.steps)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "kl": kl.item()}


def check_plain(model: Any, tokenizer: Any, anchors: Sequence[Anchor], seed: int) -> dict[str, float]:
    """What must not get worse without memory: sanity items, general knowledge, distance to the base."""
    return {
        "sanity": sanity_accuracy(model, tokenizer, sanity_items(seed))[0],
        "known": distractors(model, tokenizer, ())["known"],
        "anchor_kl": anchor_kl(model, anchors, 0),
    }


# Progress and checkpoints


def _count(cursor: Cursor, lesson: Lesson, scenes: int) -> None:
    cursor.next_scene += 1
    if cursor.next_scene > scenes:
        return  # counted when it came first
    cursor.memories += len(lesson.blocks)
    for kind, (taught, asked) in lesson.kinds.items():
        before = cursor.kinds.get(kind, [0, 0])
        cursor.kinds[kind] = [before[0] + taught, before[1] + asked]
        cursor.taught, cursor.asked = cursor.taught + taught, cursor.asked + asked


def _progress(cursor: Cursor, config: ReaderConfig) -> str:
    last = cursor.history[-20:]
    loss, kl = (sum(each[key] for each in last) / len(last) for key in ("loss", "kl"))
    return (
        f"step {cursor.steps}/{config.steps} loss {loss:.3f} kl {kl:.3f} taught {cursor.taught} of "
        f"{cursor.asked} {cursor.seconds:.0f} s"
    )


def _save(out: Path, model: PeftModel, optimizer: torch.optim.Optimizer, cursor: Cursor) -> None:
    """A new checkpoint; the one before goes once this one is whole."""
    folder = out / _folder(cursor.steps)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    write_json(folder / CURSOR, asdict(cursor))
    for other in out.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other)


def _folder(steps: int) -> str:
    return f"checkpoint-{steps:06d}"


def _last(out: Path) -> Path | None:
    return max((path.parent for path in out.glob(f"checkpoint-*/{CURSOR}")), default=None)


def _resume(out: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> Cursor:
    folder = _last(out)
    if folder is None:
        return Cursor()
    set_peft_model_state_dict(model, load_peft_weights(str(folder / ADAPTER), device=str(model.device)))
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    cursor = Cursor(**read_json(folder / CURSOR))
    cursor.resumes += 1
    return cursor
