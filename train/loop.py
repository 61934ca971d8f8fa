"""The loop of a training worker; `train_loop_per_worker` lists its stages.

One round is one block of the replay stream. The worker trains on its forms in steps of `batch_size` rows, each with a
batch of anchors, then reports counts and metrics to Ray Train, every few rounds with a checkpoint. A worker group
that was killed restarts here and continues after the last checkpointed round.
"""

import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from common.config import Config, TrainConfig
from common.files import read_json, write_json
from models.weights.load import LoadedModel, load_model
from models.weights.load_report import check_folder
from train.anchors import Anchor, Anchors, anchor_batch, anchor_kl, batch_kl, load_or_make
from train.generation.chat import answer_ids, prompt_ids
from train.objective import (
    Batch,
    answer_loss,
    common_start,
    make_batch,
    position_logits,
    row_mean,
    split_batch,
)
from train.replay.rounds import iterate_rounds

MANIFEST = "manifest.json"  # written last: a checkpoint without it is not one
ADAPTER = "adapter"
OPTIMIZER = "optimizer"
MAX_FORM_TOKENS = 512
NEAR_SHARE = 0.75  # of a batch of anchors
WARM_UP = 0.05  # share of the training


@dataclass
class Cursor:
    """Progress of replay, summed over ranks. A restart needs this, the adapter and the optimizer state."""

    next_round: int = 0
    steps: int = 0
    samples: int = 0
    streamed: int = 0
    trained: int = 0
    reported: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent in rounds by rank 0, which waits for the others
    resumes: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Student(torch.nn.Module):
    """The adapted model, with the one forward pass that training needs."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return position_logits(self.model, batch)


@dataclass
class Worker:
    """State of a training worker, as a round uses it."""

    config: TrainConfig
    engine: Any
    tokenizer: Any
    anchors: Anchors
    rank: int
    device: torch.device


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """`settings`: `config` (a dumped `Config`), `storage` (folder of anchors), `neighbours` (questions),
    `parent` (an adapter folder or None)."""
    config = Config.model_validate(settings["config"])
    context = ray.train.get_context()
    shard = ray.train.get_dataset_shard("replay")
    loaded = _load(config)
    anchors = load_or_make(
        Path(settings["storage"]), loaded.model, loaded.tokenizer, loaded.digest,
        others=settings["neighbours"], count=config.train.anchors, seed=config.train.seed,
    )  # fmt: skip
    model = add_lora(loaded.model, config.train, settings["parent"])
    engine = start_engine(Student(model), config.train, loaded.dtype)
    worker = Worker(config.train, engine, loaded.tokenizer, anchors, context.get_world_rank(), loaded.device)
    cursor = _resume(engine)
    ready = time.monotonic()
    for number, rows in iterate_rounds(shard):
        if number < cursor.next_round:
            continue
        waited = time.monotonic() - ready
        metrics = train_round(worker, cursor, number, rows)
        metrics["wait_s"] = cursor.history[-1]["wait_s"] = waited  # for the stream
        last = number + 1 == config.train.rounds
        if last:
            model.eval()
            metrics["anchor_kl"] = anchor_kl(model, anchors.held_out, loaded.tokenizer.eos_token_id)
        metrics["model_digest"] = loaded.digest
        if last or (number + 1) % config.train.checkpoint_every_rounds == 0:
            _report_checkpoint(worker, model, cursor, metrics)
        else:
            ray.train.report(metrics)
        ready = time.monotonic()


def train_round(
    worker: Worker, cursor: Cursor, number: int, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Train on this rank's rows of one round, add to `cursor`, and return the round's metrics."""
    started = time.monotonic()
    forms = [_encode(worker.tokenizer, row) for row in rows]
    size = worker.config.batch_size
    batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    sums = torch.zeros(2, dtype=torch.float64)
    tokens = 0
    for place, batch in enumerate(batches):
        rate = learning_rate(worker.config, (number + (place + 0.5) / len(batches)) / worker.config.rounds)
        losses, fed = _step(
            worker,
            [forms[row] for row in batch],
            [_weight(rows[row], forms[row]) for row in batch],
            random.Random(f"{worker.config.seed}/{number}/{place}/{worker.rank}"),
            rate,
        )
        sums += losses
        tokens += fed
    real = [row for row, form in zip(rows, forms, strict=True) if row["weight"] > 0]
    kept = sum(_weight(row, form) > 0 for row, form in zip(rows, forms, strict=True))
    counts = _sum_over_ranks(
        [len(real), kept, len(real) - kept, tokens, *(sums / max(1, len(batches))).tolist(), 1.0],
        worker.device,
    )
    streamed, trained, reported, tokens_all, loss, kl, ranks = counts
    seconds = time.monotonic() - started
    cursor.next_round = number + 1
    cursor.steps += len(batches)
    cursor.samples += len(_samples_over_ranks({row["sample"] for row in real}))
    cursor.streamed += int(streamed)
    cursor.trained += int(trained)
    cursor.reported += int(reported)
    cursor.tokens += int(tokens_all)
    cursor.seconds += seconds
    metrics = {
        "round": number,
        "loss": loss / ranks,
        "kl": kl / ranks,
        "lr": learning_rate(worker.config, (number + 1) / worker.config.rounds),
        "forms": int(streamed),
        "tokens_per_s": tokens_all / seconds,
        "seconds": seconds,
    }
    cursor.history.append(metrics)
    if worker.rank == 0:
        print(
            f"round {number + 1}/{worker.config.rounds} loss {metrics['loss']:.3f} kl {metrics['kl']:.3f} "
            f"forms {metrics['forms']} {metrics['tokens_per_s']:.0f} tokens/s",
            flush=True,
        )
    return {
        **metrics,
        **{name: value for name, value in asdict(cursor).items() if name != "history"},
        "round": number,
    }


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then cosine decay to 0. `progress`: completed share of the training, 0 to 1."""
    if progress < WARM_UP:
        return config.lr * progress / WARM_UP
    return config.lr * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def add_lora(model: Any, config: TrainConfig, parent: str | None) -> PeftModel:
    """Add a new LoRA, the same on every rank, or load the parent's to continue from."""
    torch.manual_seed(config.seed)
    if parent is not None:
        check_folder(model, Path(parent))
        return PeftModel.from_pretrained(model, parent, is_trainable=True, autocast_adapter_dtype=False)
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=config.targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def start_engine(student: Student, config: TrainConfig, dtype: torch.dtype) -> Any:
    """DeepSpeed ZeRO-1 or 2 around the student; in bfloat16 the optimizer keeps float32 copies of the adapter."""
    import deepspeed

    if not torch.cuda.is_available():
        # Else DeepSpeed compiles its shared-memory collectives at start; gloo does without, and without a compiler.
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=0.0)
    student.train()
    engine, *_ = deepspeed.initialize(
        model=student,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": 1 << 24},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": dtype == torch.bfloat16},
            "steps_per_print": sys.maxsize,
        },
    )
    return engine


def choose_dtype(wanted: str) -> tuple[str, str]:
    """Return (dtype name, reason). `auto` is bfloat16 if the hardware multiplies it, else float32."""
    if wanted != "auto":
        return wanted, "as configured"
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
        return ("bfloat16", "the GPU supports it") if fast else ("float32", "the GPU has no bfloat16")
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return ("bfloat16", "the CPU multiplies it") if fast else ("float32", "the CPU has no bfloat16 products")


def _load(config: Config) -> LoadedModel:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.train.workers))
    dtype, reason = choose_dtype(config.train.dtype)
    print(f"training in {dtype}: {reason}; {torch.get_num_threads()} threads", flush=True)
    loaded = load_model(config.model.name, dtype)
    if loaded.device.type == "cpu":
        # The fused kernel's backward is several times slower than plain matrix products on a CPU.
        loaded.model.set_attn_implementation("eager")
    return loaded


def _encode(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    return prompt_ids(tokenizer, row["question"], row["system"]), answer_ids(tokenizer, row["answer"])


def _weight(row: dict[str, Any], form: tuple[list[int], list[int]]) -> float:
    """0 for padding rows, and for forms too long to train on, which are reported."""
    return float(row["weight"]) if len(form[0]) + len(form[1]) <= MAX_FORM_TOKENS else 0.0


def _pick_anchors(
    worker: Worker, start: Sequence[int], rng: random.Random
) -> tuple[list[Anchor], list[Anchor]]:
    """(near, wide). Mostly near ones: they are short, and they are what training on facts pulls away first.

    Those under the system prompt of the forms, whose first tokens are `start`, go through the model with them.
    """
    count = round(NEAR_SHARE * worker.config.anchor_batch)
    alike = [anchor for anchor in worker.anchors.near if anchor.prompt[: len(start)] == list(start)]
    near, wide = alike or worker.anchors.near, worker.anchors.wide
    return (
        rng.sample(near, min(count, len(near))),
        rng.sample(wide, min(worker.config.anchor_batch - count, len(wide))),
    )


def _step(
    worker: Worker,
    forms: list[tuple[list[int], list[int]]],
    weights: list[float],
    rng: random.Random,
    rate: float,
) -> tuple[Tensor, int]:
    """One optimiser step. Returns (loss, kl) `[2]` and the number of tokens fed, padding aside.

    Two passes: forms with the near anchors, which are as short, and the wide anchors.
    """
    pad, ones = worker.tokenizer.eos_token_id, partial(torch.ones, device=worker.device)
    kept = [number for number, weight in enumerate(weights) if weight > 0] or [0]
    pairs = [_cut(forms[number]) for number in kept]
    near: list[Anchor] = []
    wide: list[Anchor] = []
    if worker.config.kl_weight > 0:
        near, wide = _pick_anchors(worker, pairs[0][0][: common_start([prompt for prompt, _ in pairs])], rng)
    batch = make_batch([*pairs, *((anchor.prompt, anchor.text) for anchor in near)], pad, worker.device)
    logits = worker.engine(batch)
    asked, heard = split_batch(batch, len(pairs))
    share = torch.tensor([weights[number] for number in kept], device=worker.device)
    loss = answer_loss(logits[: len(asked.targets)], asked, share)
    fed = int(batch.mask.sum())
    kl = torch.zeros((), device=worker.device)
    if near:
        kl = kl + len(near) * row_mean(batch_kl(logits[len(asked.targets) :], near), heard, ones(len(near)))
    if wide:
        anchored = anchor_batch(wide, pad, worker.device)
        kl = kl + len(wide) * row_mean(batch_kl(worker.engine(anchored), wide), anchored, ones(len(wide)))
        fed += int(anchored.mask.sum())
    kl = kl / max(1, len(near) + len(wide))
    worker.engine.backward(loss + worker.config.kl_weight * kl)
    for group in worker.engine.optimizer.param_groups:
        group["lr"] = rate
    worker.engine.step()
    return torch.stack([loss.detach(), kl.detach()]).double().cpu(), fed


def _cut(form: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """A form that only fills a batch (weight 0) may be long; every other fits as it is."""
    return form[0][:MAX_FORM_TOKENS], form[1][:MAX_FORM_TOKENS]


def _sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def _samples_over_ranks(mine: set[int]) -> set[int]:
    """Numbers of the draws of a round; the forms of one draw may lie on several ranks."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, mine)
    return set().union(*gathered)


def _report_checkpoint(worker: Worker, model: PeftModel, cursor: Cursor, metrics: dict[str, Any]) -> None:
    """Save on all ranks into folders that Ray merges; the manifest is written last, by rank 0."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        worker.engine.save_checkpoint(str(folder / OPTIMIZER), tag=OPTIMIZER, exclude_frozen_parameters=True)
        if worker.rank == 0:
            model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
            sizes = {
                str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
            }
            write_json(folder / MANIFEST, {"cursor": asdict(cursor), "files": sizes})
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(engine: Any) -> Cursor:
    """The cursor of the run's last checkpoint, adapter and optimizer loaded; a new one where there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Cursor()
    with checkpoint.as_directory() as folder:
        manifest = read_json(Path(folder) / MANIFEST)
        engine.load_checkpoint(str(Path(folder) / OPTIMIZER), tag=OPTIMIZER, load_module_strict=False)
    cursor = Cursor(**manifest["cursor"])
    cursor.resumes += 1
    print(f"resumed after round {cursor.next_round}", flush=True)
    return cursor
