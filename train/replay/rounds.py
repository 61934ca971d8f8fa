"""Rounds of replay as a bounded Ray Data stream: one Arrow block a round, ids sampled, forms attached.

`ReplaySource` plans a round when its block is read, from the records given at construction. `ReplayData` gives every
training worker its share of each round, padded with rows of weight 0 to equal lengths: no row is dropped, and no
worker waits for the data of another.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
import ray.train
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from common.config import ReplayConfig, TrainConfig
from train.generation.chat import SYSTEMS
from train.replay.forms import Form, forms_of, pick_forms
from train.replay.sampler import Sampler

SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("sample", pa.int32()),  # number of the draw within the round
        ("memory_id", pa.string()),
        ("form", pa.string()),
        ("system", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("weight", pa.float32()),  # 0 marks padding
    ]
)


class RoundPlanner:
    """Builds the block of a round; a pure function of the records, the configuration and the round's number."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], replay: ReplayConfig, train: TrainConfig
    ) -> None:
        self._train = train
        found = {record["id"]: forms_of(record) for record in records}
        self._forms: dict[str, list[Form]] = {memory_id: forms for memory_id, forms in found.items() if forms}
        # A memory without any form (no text, no cue) would make empty draws.
        usable = [record for record in records if record["id"] in self._forms]
        self._sampler = Sampler(usable, replay, train.seed)
        self.samples = max(1, math.ceil(train.samples_per_round * self._sampler.num_items))

    def block(self, round_number: int) -> pa.Table:
        """One row a form, `SCHEMA`, in random order. The rows of one step share a system prompt, which the
        model then reads once for all of them."""
        rng = random.Random(f"{self._train.seed}/{round_number}")
        drawn = [
            (sample, form)
            for sample, memory_id in enumerate(self._sampler.sample(self.samples, round_number))
            for form in pick_forms(self._forms[memory_id], self._train.forms_per_sample, rng)
        ]
        rng.shuffle(drawn)
        step = self._train.batch_size * self._train.workers
        systems = [rng.choice(SYSTEMS) for _ in range(0, len(drawn), step)]
        rows = [
            (round_number, sample, f.memory_id, f.kind, systems[n // step], f.question, f.answer, 1.0)
            for n, (sample, f) in enumerate(drawn)
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA
        )


class ReplaySource(Datasource):
    """Blocks of rounds 0, 1, .. in this order, read by one task, which plans each block when it is read."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], replay: ReplayConfig, train: TrainConfig
    ) -> None:
        super().__init__()
        self._records = list(records)
        self._replay = replay
        self._train = train

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        read = partial(_read_rounds, self._records, self._replay, self._train)
        return [ReadTask(read, metadata, schema=SCHEMA)]


def _read_rounds(
    records: Sequence[Mapping[str, Any]], replay: ReplayConfig, train: TrainConfig
) -> Iterator[pa.Table]:
    planner = RoundPlanner(records, replay, train)
    for number in range(train.rounds):
        yield planner.block(number)


class ReplayData(ray.train.DataConfig):
    """Gives rank r every world-th row of each round, and all ranks equally many (see `share_of`)."""

    def __init__(self) -> None:
        options = ray.data.ExecutionOptions(preserve_order=True)
        super().__init__(datasets_to_split=[], execution_options=options)

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        shares: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            for rank in range(world_size):
                share = dataset.map_batches(
                    share_of,
                    fn_kwargs={"rank": rank, "world_size": world_size},
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=CPUS,
                )
                share.context.execution_options = self._resolve_execution_options(name)
                shares[rank][name] = share.iterator()
        return shares


CPUS = (
    0.1  # of a task that plans rounds: it is short, and must start even where training holds every whole CPU
)


def share_of(block: pa.Table, rank: int, world_size: int) -> pa.Table:
    """Rank's rows of a block, padded to `ceil(rows / world_size)` with copies of weight 0."""
    length = math.ceil(block.num_rows / world_size)
    wanted = [rank + world_size * number for number in range(length)]
    share = block.take([number if number < block.num_rows else 0 for number in wanted])
    weights = [
        weight if number < block.num_rows else 0.0
        for number, weight in zip(wanted, share["weight"].to_pylist(), strict=True)
    ]
    return share.set_column(SCHEMA.get_field_index("weight"), "weight", pa.array(weights, pa.float32()))


def replay_stream(
    records: Sequence[Mapping[str, Any]], replay: ReplayConfig, train: TrainConfig
) -> Callable[[], ray.data.Dataset]:
    """What `TorchTrainer(datasets={"replay": ...})` takes: called again for every worker group."""

    def make() -> ray.data.Dataset:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # a job's log is no terminal
        # One block a task says "do not split": a round stays one block.
        return ray.data.read_datasource(
            ReplaySource(records, replay, train), override_num_blocks=1, ray_remote_args={"num_cpus": CPUS}
        )

    return make


def iterate_rounds(shard: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(round number, its rows) in order, from a `DataIterator`; a round may arrive in several batches."""
    current: list[dict[str, Any]] = []
    for batch in shard.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            if current and row["round"] != current[0]["round"]:
                yield current[0]["round"], current
                current = []
            current.append(row)
    if current:
        yield current[0]["round"], current
