"""Configuration: one YAML file, sections by component. Later sources win: defaults, file, environment, overrides.

`SHARPWAVE_TRAIN__LR=1e-4` sets `train.lr`, and so does `overrides={"train.lr": 1e-4}`, which is what `--set
train.lr=1e-4` passes. Unknown keys raise `InvalidInput` with the valid ones. `config_hash` is written into every run
and manifest.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.api_keys import KeyRights, ModeSetting
from common.errors import InvalidInput
from common.names import check_name

ENV_PREFIX = "SHARPWAVE_"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://[^/?#@\s*]+")
_MAY_BE_SECRET = ("store.redis_url", "store.redis_password")  # where a password may have been put

FUNCTIONAL_RELATIONS = (
    "age born_in born_on capital_of died_in died_on has_capital job_title lives_in located_in married_to "
    "native_language spouse_of works_at works_for"
).split()
INVERSE_RELATIONS = {
    "parent_of": "child_of",
    "owns": "owned_by",
    "has_part": "part_of",
    "employs": "works_at",
    "capital_of": "has_capital",
    "contains": "located_in",
    "teaches": "taught_by",
    "married_to": "married_to",
    "spouse_of": "spouse_of",
    "sibling_of": "sibling_of",
    "friend_of": "friend_of",
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """The language model that answers, is scored, and is consolidated into."""

    name: str = Field("smollm2-135m", description="short name, Hugging Face id, folder, or .gguf file")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    threads: int = Field(0, ge=0, description="torch threads of one replica; 0: all CPUs of its machine")
    max_adapters: int = Field(4, ge=1, description="adapter versions held in memory at once")


class StoreConfig(Section):
    """Durable shards, one log each."""

    backend: Literal["lmdb", "jsonl", "redis"] = Field("lmdb", description="where the log of a shard is kept")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="redis:// or rediss://, without a password"
    )
    redis_password: str | None = Field(
        None, description="where the server's password is: env:NAME or file:PATH; none: no password"
    )
    redis_prefix: str = Field("sharpwave", min_length=1, description="begins every key; one a store")
    redis_durability: Literal["always", "everysec"] = Field(
        "always",
        description="what a write waits for; everysec may lose the last second of a server that dies",
    )
    redis_replicas: int = Field(0, ge=0, description="replicas that must confirm a write, beside the server")
    redis_deadline_s: float = Field(
        10.0, gt=0.0, description="how long an unreachable server is tried before the log stops"
    )
    anchor_bits: Literal[64, 256] = Field(64, description="256 where the chain must resist a forger")
    chain_key: str | None = Field(
        None, description="where the chain's secret key is: env:NAME or file:PATH; none: no key"
    )
    master_key: str | None = Field(
        None,
        description="encrypts the stores: where the master key is, env:NAME or file:PATH; none: no encryption",
    )
    keys_dir: str | None = Field(
        None, description="folder of the wrapped data keys, to be backed up apart; none: beside each log"
    )
    dir: str = Field(".sharpwave", description="folder of shards, KV blocks, adapters and instance state")
    shards: int = Field(2, ge=1, le=1024, description="of a new store; `sharpwave reshard` changes them")
    spread: int = Field(
        4, ge=1, le=1024, description="shards that one namespace uses, where there are as many"
    )
    actor_cpus: float = Field(0.05, gt=0.0, description="of one shard: more than none keeps its node up")
    actor_resource: str | None = Field(None, description="custom Ray resource of the nodes that take shards")
    node_labels: dict[str, str] = Field(
        default_factory=dict, description="of the node with the shards' disk; none: where they are started"
    )
    write_threads: int = Field(64, ge=1, le=1024, description="writes of one shard that share an fsync")
    read_threads: int = Field(4, ge=1, le=1024)
    max_waiting: int = Field(256, ge=0, description="writes, and reads, that may wait for one shard")
    reshard_lease_s: float = Field(
        15.0, gt=0.0, description="how long shards wait for a reshard that gives no sign before going on"
    )
    batch_operations: int = Field(256, ge=1, description="writes that may share one fsync; 1: none do")
    map_size_bytes: int = Field(8 << 30, ge=10 << 20, description="upper bound of one shard's file")
    max_text_bytes: int = Field(16_384, ge=1, description="a longer memory text is refused: split it")
    snapshot_every: int = Field(
        10_000, ge=0, description="records between two snapshots of a shard; 0: none but those asked for"
    )
    snapshots_kept: int = Field(2, ge=1, description="snapshots of a shard that stay, the newest")
    gate_tau: float = Field(0.0, description="write gate: stored where S > tau; at 0 every write is")
    gate_surprise: float = Field(1.0, ge=0.0, description="weight of context.surprise, 0 where not given")
    gate_novelty: float = Field(1.0, ge=0.0)
    gate_reward: float = Field(1.0, ge=0.0)
    gate_pin: float = Field(1e9, ge=0.0, description="a pinned memory is stored whatever its score")
    strength_half_life_s: float = Field(30 * 86_400.0, gt=0.0, description="strength halves in this time")
    strength_refresh: float = Field(0.5, ge=0.0, le=1.0, description="of what is lost, regained by one use")
    key_width: int = Field(4096, ge=64, le=65_536, description="units of a sparse episodic key")
    key_winners: int = Field(64, ge=1, description="active units of a sparse episodic key")
    completion_beta: float = Field(32.0, gt=0.0, description="inverse temperature of pattern completion")
    fact_confidence: float = Field(0.9, ge=0.0, le=1.0, description="of a fact told without one")
    functional_relations: list[str] = Field(
        default_factory=lambda: list(FUNCTIONAL_RELATIONS), description="one object at a time"
    )
    inverse_relations: dict[str, str] = Field(
        default_factory=lambda: dict(INVERSE_RELATIONS), description="a relation -> itself read backwards"
    )
    aliases: dict[str, str] = Field(default_factory=dict, description="name -> the name it stands for")
    place_epsilon: float = Field(
        0.25, gt=0.0, description="places closer than this, in units of x and y, with one name are merged"
    )
    dedupe_similarity: float = Field(
        0.98, description="cosine from which episodes of the same words are one; 0, or over 1: never"
    )
    max_turns: int = Field(
        0, ge=0, description="turns of a conversation kept in short-term memory, the newest; 0: all"
    )
    race_decay: float = Field(0.5, ge=0.0, le=1.0, description="what losing a race leaves of the strength")
    salience_rate: float = Field(
        0.3, gt=0.0, le=1.0, description="weight of a new divergence in salience's moving average"
    )
    index: Literal["auto", "flat", "ivf", "hnsw"] = Field(
        "auto",
        description="vectors of a namespace: auto is exact up to index_flat_max, a spherical k-means tree above",
    )
    index_flat_max: int = Field(10_000, ge=0, description="memories of a namespace that are searched exactly")
    index_recall: float = Field(
        0.98,
        gt=0.0,
        le=1.0,
        description="recall@10 that a tree or graph is calibrated to, on its own vectors",
    )

    @field_validator("redis_url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        if not re.fullmatch(r"rediss?://([^:@/]+@)?([\w.-]+|\[[\da-f:]+\])(:\d+)?(/\d*)?", url):
            raise ValueError(
                "must be redis://[user@]host:port/db, or rediss:// for TLS; no password, since it is "
                "written into every run: set store.redis_password"
            )
        return url


class EmbedConfig(Section):
    model: str = Field("minilm", description="short name, sentence-transformers id, or folder")
    aliases: list[str] = Field(
        [], description="further names of it in requests, such as text-embedding-3-small"
    )
    token_ids: str | None = Field(
        None,
        description="tokenizer whose ids clients send instead of texts: `own`, the embedder's, or a tokenizer.json; "
        "null refuses ids",
    )


class RecallConfig(Section):
    """Defaults of a request's `memory` field."""

    mode: ModeSetting = "prefix"
    k: int = Field(8, ge=1, le=1000, description="memories at most, where the request gives no number")
    min_share: float = Field(
        0.6,
        ge=0.0,
        le=1.0,
        description="of the best one's score that the others must have (retrieval full); 0: all k",
    )
    evidence_near: float = Field(
        0.68,
        ge=0.0,
        le=1.0,
        description="cosine below which a memory without the question's words is no evidence; for another embedder",
    )
    absence: bool = Field(
        True,
        description="without evidence the model is told to say that it does not know what it was never told",
    )
    encoder: Literal["kv_chunks", "kv_exact", "kv_compact", "soft_prompt"] = Field(
        "kv_chunks",
        description="what a KV block holds: kv_chunks all tokens of one memory; kv_exact the namespace's whole "
        "history in order of time; kv_compact the tokens that matter most; soft_prompt learned embeddings",
    )
    compact: Literal[2, 4] = Field(2, description="kv_compact: one slot for so many tokens")
    soft_prompt: str | None = Field(None, description="file of the trained encoder (soft_prompt)")
    reprocess: Literal["none", "first_k", "best_last"] = Field(
        "best_last",
        description="prefix assembly: which memory tokens are processed again with the question",
    )
    first_k: int = Field(8, ge=1, description="tokens of each later block processed again (first_k)")
    best: int = Field(
        2, ge=1, description="how many of the most relevant blocks are processed again (best_last)"
    )
    bias: float = Field(
        0.0, description="strength of the injected memories' value states as a bias of the logits; 0: off"
    )
    overlay: float = Field(
        0.0, description="strength of the same as a low-rank overlay of the last output projection; 0: off"
    )
    block_dtype: Literal["model", "int8"] = Field(
        "model", description="KV blocks at rest: as the model has them, or in eight bits with scales"
    )
    block_device_bytes: int = Field(1 << 30, ge=0, description="GPU memory for KV blocks, where there is one")
    block_cache_bytes: int = Field(1 << 30, ge=0, description="host memory for KV blocks, behind that")
    block_disk_bytes: int = Field(
        0, ge=0, description="disk for KV blocks, behind that; those used longest ago go; 0: no bound"
    )
    attribute_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="of the answers, for which it is measured what each injected memory did to them, unasked",
    )
    reranker: str | None = Field(
        None,
        description="cross-encoder that orders the best anew in retrieval full: an id or a folder; null: none",
    )

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> Self:
        if self.encoder == "soft_prompt" and not self.soft_prompt:
            raise ValueError("encoder soft_prompt needs recall.soft_prompt, the file of a trained one")
        if self.attribute_share and (self.encoder == "kv_exact" or self.bias or self.overlay):
            raise ValueError(
                "attribute_share needs memories that can be hidden one by one: no encoder kv_exact, no bias, no overlay"
            )
        if self.reprocess == "first_k" and self.encoder in ("kv_compact", "soft_prompt"):
            raise ValueError(
                f"reprocess first_k needs a slot for every token, which {self.encoder} lacks; use best_last or none"
            )
        return self


class ServeConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8099, ge=0, le=65535, description="0: a free port")
    api_keys: dict[str, KeyRights] = Field(
        default_factory=dict,
        description="key -> namespaces it may use, ['*'] for all; or {namespaces, namespace, memory}: also the "
        "namespace and the mode of its requests that say none",
    )
    default_namespace: str | None = Field(
        "default",
        description="of requests that name none, without keys or with one for all namespaces; null: they must",
    )
    mem0: bool = Field(False, description="also answer clients of mem0, on paths that end in a slash")
    cors_origins: list[str] = Field(
        default_factory=list,
        description="pages that browsers may call from, as https://example.org; ['*']: all",
    )
    max_body_bytes: int = Field(32 << 20, ge=1024)
    max_import_bytes: int = Field(4 << 30, ge=1024, description="of a file to import, in place of that")
    max_queued: int = Field(64, ge=1, description="requests in flight before 429")
    max_batch: int = Field(8, ge=1, description="requests that decode together on one replica")
    kv_cache_bytes: int = Field(2 << 30, ge=1 << 20, description="keys and values of the requests that run")
    prefill_tokens: int = Field(
        256, ge=16, description="prompt tokens run between two tokens of the requests that already answer"
    )
    cuda_graphs: bool = Field(True, description="on a GPU: record passes of one shape, and replay them")
    deadline_s: float = Field(120.0, gt=0.0)
    recall_deadline_s: float = Field(10.0, gt=0.0, description="then a chat is answered without memory")
    max_new_tokens: int = Field(256, ge=1, description="where the request gives none")
    min_replicas: int = Field(1, ge=1, description="of the language model, each with weights of its own")
    max_replicas: int = Field(1, ge=1, description="over min_replicas: as many as the load wants")
    target_ongoing_requests: float = Field(
        8.0, gt=0.0, description="requests of one replica that the number of replicas is scaled to"
    )
    replica_gpus: float = Field(0.0, ge=0.0, description="of one replica of the language model")
    surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="extra replicas while an update rolls: 100 needs room for both; at 0 the old go first, and "
        "requests wait",
    )

    @field_validator("default_namespace")
    @classmethod
    def _is_a_name(cls, namespace: str | None) -> str | None:
        return namespace if namespace is None else check_name(namespace, "serve.default_namespace")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} must be scheme://host or scheme://host:port, without a path, or '*'"
                )
        return origins

    @field_validator("max_replicas")
    @classmethod
    def _not_below_min(cls, most: int, others: ValidationInfo) -> int:
        if most < (least := others.data.get("min_replicas", 1)):
            raise ValueError(f"must be at least serve.min_replicas, which is {least}")
        return most


class ScoreConfig(Section):
    actors: int = Field(1, ge=1, description="scorer actors of a job; each holds one CPU")
    gpus_per_actor: float = Field(
        0.0, ge=0.0, description="GPUs that each scorer holds: a fraction shares one GPU; 0: score on CPUs"
    )
    batch_tokens: int = Field(4096, ge=64, description="tokens of one forward pass over responses")
    context: Literal["text", "prefix"] = Field(
        "text",
        description="what the memories are to the model: text that it reads, or KV blocks, of which each is hidden in "
        "turn and none recomputed",
    )

    @field_validator("gpus_per_actor")
    @classmethod
    def _whole_over_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number of GPUs, or a fraction below 1")
        return gpus


class ReplayConfig(Section):
    policy: Literal["uniform", "priority"] = "priority"
    mix: dict[str, float] = Field(
        default_factory=lambda: {"episodic": 0.6, "relational": 0.3, "spatial": 0.1}
    )
    salience: float = Field(0.5, ge=0.0)
    usage: float = Field(0.3, ge=0.0)
    novelty: float = Field(0.2, ge=0.0)
    exponent: float = Field(0.6, ge=0.0, description="a in p ~ (eps + s)^a; 0 is uniform")
    eps: float = Field(0.1, gt=0.0)
    max_items: int = Field(10_000, ge=1, description="memories a consolidation may touch")


class TrainConfig(Section):
    rounds: int = Field(10, ge=1, description="bounded replay passes")
    samples_per_round: float = Field(
        1.0, gt=0.0, description="memories drawn in a round, as a multiple of those stored"
    )
    forms_per_sample: int = Field(6, ge=1)
    batch_size: int = Field(16, ge=1, description="forms in one optimiser step of one worker")
    lr: float = Field(1e-3, gt=0.0)
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: list[str] = Field(default_factory=lambda: ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    kl_weight: float = Field(0.3, ge=0.0, description="weight of KL(base || student) on anchor text")
    anchors: int = Field(64, ge=0, description="texts the base model writes itself, to stay close to")
    anchor_batch: int = Field(8, ge=1)
    zero_stage: Literal[1, 2] = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    cpus_per_worker: float = Field(1, gt=0)
    seed: int = 1337
    max_failures: int = Field(2, ge=0)
    checkpoint_every_rounds: int = Field(4, ge=1)


class GateConfig(Section):
    min_uplift: float = Field(0.2, description="exact match, adapter minus base, memory off")
    max_sanity_drop: float = Field(0.01, ge=0.0)
    withdraw: bool = Field(
        True, description="aliases leave versions trained on what is erased or no longer holds"
    )
    sanity_items: int = Field(
        400, ge=20, le=400, description="of the sanity test; fewer are faster and coarser"
    )
    max_refusal_rate: float = Field(0.5, ge=0.0, le=1.0)
    max_anchor_kl: float = Field(0.5, gt=0.0, description="nats a token, on held-out anchors")


class RayConfig(Section):
    num_cpus: int = Field(0, ge=0, description="0: all of the machine")
    object_store_bytes: int = Field(200 << 20, ge=78 << 20)
    address: str | None = Field(None, description="an existing cluster; none: start one here")


class Config(Section):
    model: ModelConfig = ModelConfig()
    store: StoreConfig = StoreConfig()
    embed: EmbedConfig = EmbedConfig()
    recall: RecallConfig = RecallConfig()
    serve: ServeConfig = ServeConfig()
    score: ScoreConfig = ScoreConfig()
    replay: ReplayConfig = ReplayConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    ray: RayConfig = RayConfig()

    @property
    def hash(self) -> str:
        """Digest of the resolved configuration: 16 hex digits of BLAKE2b."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    @property
    def store_dir(self) -> Path:
        return Path(self.store.dir).expanduser().resolve()


def load(
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    base: "Config | None" = None,
) -> Config:
    """Resolve the configuration; `base` stands in for the defaults, as a running instance's does for its jobs.

    Raises `InvalidInput` naming the key, its value and the rule.
    """
    values: dict[str, Any] = base.model_dump() if base is not None else {}
    for section, content in (_read_yaml(Path(path)) if path is not None else {}).items():
        values[section] = {**(values.get(section) or {}), **(content or {})}
    for dotted, value in {**_from_env(os.environ if env is None else env), **(overrides or {})}.items():
        _set(values, dotted, value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


def parse_override(text: str) -> tuple[str, Any]:
    """`train.lr=1e-4` -> `("train.lr", 0.0001)`; the value is read as YAML."""
    key, found, value = text.partition("=")
    if not found or "." not in key:
        raise InvalidInput(f"--set {text!r}: expected section.key=value, as in train.lr=1e-4", param="set")
    return key.strip(), yaml.safe_load(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidInput(f"config {str(path)!r} is not a file; give a path to a YAML file", param="config")
    loaded = yaml.safe_load(path.read_text()) or {}
    if not isinstance(loaded, dict):
        raise InvalidInput(f"config {str(path)!r} must hold sections, as in 'train:'", param="config")
    return loaded


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, text in env.items():
        if name.startswith(ENV_PREFIX) and "__" in name:
            found[name.removeprefix(ENV_PREFIX).lower().replace("__", ".")] = yaml.safe_load(text)
    return found


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, key = dotted.partition(".")
    values[section] = {**(values.get(section) or {}), key: value}


def _explain(error: ValidationError) -> InvalidInput:
    first = error.errors()[0]
    loc = [*first["loc"]]
    if loc[:2] == ["serve", "api_keys"] and len(loc) > 2:
        loc[2] = "KEY"  # a message must not hold it
    where = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        section = Config.model_fields[str(loc[0])].annotation if len(loc) > 1 else Config
        within = KeyRights if "KEY" in loc else cast(type[BaseModel], section)
        fields = within.model_fields
        return InvalidInput(
            f"unknown config key {where!r}; valid here: {', '.join(sorted(fields))}", param=where
        )
    shown = "(hidden)" if where in _MAY_BE_SECRET else repr(first["input"])
    return InvalidInput(f"config {where} = {shown}: {first['msg']}", param=where)
