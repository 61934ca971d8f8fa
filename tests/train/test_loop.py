"""The loop on Ray Train and DeepSpeed with a tiny model: counts hold, and a killed worker loses nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from common import config as configuration
from common.config import Config
from common.errors import InvalidInput
from tests.support.models import write_tiny_llama
from tests.support.ray_stores import local_ray
from train.loop import choose_dtype, learning_rate
from train.trainer import TrainResult, data_digest, run_training

ROUNDS = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_llama(
        tmp_path_factory.mktemp("tiny"),
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )


def settings(tiny: str, **train: Any) -> Config:
    given = {
        "rounds": ROUNDS,
        "batch_size": 4,
        "anchors": 6,
        "anchor_batch": 2,
        "rank": 4,
        "alpha": 8,
        **train,
    }
    return configuration.load(overrides={"model.name": tiny, **{f"train.{k}": v for k, v in given.items()}})


def facts(number: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "id": f"m{i}", "kind": "episodic", "text": f"Person {i} likes number {i}.", "statistics": {"salience": i},
            "cues": [{"question": f"What does person {i} like?", "answer": f"number {i}", "family": "train"}],
        }
        for i in range(number)
    ]  # fmt: skip


def check(result: TrainResult, records: list[dict[str, Any]]) -> None:
    replay = result.replay
    assert replay["forms"] == replay["trained"] + replay["reported"] > 0
    assert replay["samples"] == ROUNDS * len(records) and replay["rounds"] == ROUNDS
    assert [entry["round"] for entry in result.history] == list(range(ROUNDS))
    assert result.memory_ids == sorted(record["id"] for record in records)
    assert 0 <= result.anchor_kl < 10
    weights = load_file(result.adapter_dir / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in weights.items())


@pytest.mark.slow
def test_killed_worker_goes_on_and_counts_hold(cluster: None, tiny: str, tmp_path: Path) -> None:
    """kill -9 on the training worker after a checkpoint: the run resumes from it, every round is trained once."""
    records = [*facts(), {"id": "long", "kind": "episodic", "text": "", "cues": [
        {"question": "why " * 600 + "?", "answer": "so", "family": "train"}]}]  # fmt: skip
    storage = tmp_path / "storage"
    killed: list[int] = []
    killer = threading.Thread(target=_kill_after_checkpoint, args=(storage, killed), daemon=True)
    killer.start()
    result = run_training(settings(tiny, checkpoint_every_rounds=1), records, tmp_path / "adapter", storage)
    killer.join(1)
    check(result, records)
    assert killed and result.replay["resumes"] == 1
    assert result.replay["reported"] > 0, "the form that is too long is reported, not lost in silence"
    assert not list(storage.glob("run-*")), "checkpoints of a finished run are removed"
    assert len(list(storage.glob("anchors-*.pt"))) == 1


@pytest.mark.slow
def test_two_workers_train_every_form_once(cluster: None, tiny: str, tmp_path: Path) -> None:
    config = settings(tiny, workers=2, cpus_per_worker=0.5, zero_stage=2, dtype="float32")
    first = run_training(config, facts(), tmp_path / "first", tmp_path / "storage")
    check(first, facts())
    more = run_training(config, facts(7), tmp_path / "more", tmp_path / "storage", parent=first.adapter_dir)
    check(more, facts(7))
    assert more.data_digest != first.data_digest and more.model_digest == first.model_digest


def test_nothing_to_train_on_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no memories"):
        run_training(settings(tiny), [], tmp_path / "adapter", tmp_path / "storage")


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    train = configuration.load().train
    rates = [learning_rate(train, step / 200) for step in range(201)]
    assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert max(rates) == pytest.approx(train.lr) and rates.index(max(rates)) == 10


def test_dtype_is_chosen_with_a_reason() -> None:
    name, reason = choose_dtype("auto")
    assert name in ("bfloat16", "float32") and reason
    assert choose_dtype("float32") == ("float32", "as configured")


def test_data_digest_depends_on_content_not_on_order_or_statistics() -> None:
    records = facts()
    quiet = [{**record, "statistics": {}} for record in reversed(records)]
    assert data_digest(records) == data_digest(quiet) != data_digest(records[1:])


def _kill_after_checkpoint(storage: Path, killed: list[int]) -> None:
    """Once Ray has registered a checkpoint, end this cluster's training worker, and only it."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not killed:
        if any(
            "checkpoint_" in path.read_text()
            for path in storage.glob("run-*/checkpoint_manager_snapshot.json")
        ):
            for child in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(child.cmdline()[:1]):
                    child.kill()
                    killed.append(child.pid)
        time.sleep(0.05)
