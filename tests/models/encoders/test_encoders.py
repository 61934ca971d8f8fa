"""The encoders: what each promises of its blocks, and the histories and traps that come with them."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from common.config import RecallConfig
from common.errors import InvalidInput
from models.encoders.compact import compacted
from models.encoders.encoders import REPEAT, Chunks, Compact, Exact, make_encoder
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.kv import prefix as kv
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.versions import ModelVersions
from tests.support.models import QUESTION, ask, assert_same_answers, case_of, encode, make_engine, run_alone

TOLERANCE = 2e-4
FACTS = [
    RecalledMemory(id="bo", text="Bo Tarn works as a baker and keeps a goat called Rex in the yard."),
    RecalledMemory(id="ada", text="Ada Quill lives in Lisbon."),
    RecalledMemory(id="mill", text="The Amber Mill is north of the Old Gate."),
    RecalledMemory(id="cy", text="Cy Moor paints doors silver on Sundays."),
]


def make(loaded, tmp_path, **recall):
    return make_engine(loaded, tmp_path, recall=RecallConfig(**recall))


@pytest.fixture(scope="module")
def small(loaded):
    """Random weights in two narrow layers behind the real tokenizer: what is exact is so for any weights."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=loaded.model.config.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # the usual small weights would hide an error below the tolerance
        parameter.data.mul_(4.0)
    return replace(loaded, model=model)


@pytest.fixture
def exact(small, tmp_path):
    return make(small, tmp_path, encoder="kv_exact")


def logits(engine, memories, mode, namespace="n"):
    """Of the first answer token, and what became of the request."""
    turn = GenerationStats(mode=mode)
    prompt = engine.injection.prompt(
        engine.loaded.model,
        QUESTION,
        memories,
        namespace=namespace,
        adapter=BASE,
        max_tokens=4,
        turn=turn,
    )
    return kv.prefill(engine.loaded.model, prompt.prefix, prompt.ids)[1], turn


# kv_exact


def check_equals_full(engine, memories):
    injected, turn = logits(engine, memories, "prefix")
    text, _ = logits(engine, memories, "full")
    assert torch.allclose(injected, text, atol=TOLERANCE, rtol=0)
    return turn


def test_a_history_that_grows_by_one_equals_the_full_prompt_and_runs_only_what_is_new(exact):
    tail = len(exact.queue.builder.tail(QUESTION))
    for count in range(1, len(FACTS) + 1):
        new = len(exact.queue.builder.memory(FACTS[count - 1].text))
        turn = check_equals_full(exact, FACTS[:count])  # before its last memory is encoded
        assert (
            turn.fallback
            == f"text: the last 1 of {count} blocks not encoded yet for this model version; queued"
        )
        assert turn.prompt_tokens == tail + new
        assert encode(exact) == 1
        turn = check_equals_full(exact, FACTS[:count])
        assert (turn.fallback, turn.prompt_tokens) == (None, tail)
    full = case_of(FACTS, "full")
    assert_same_answers(exact, [full], [run_alone(exact, case_of(FACTS, "prefix"))], [run_alone(exact, full)])


def test_what_is_written_is_encoded_behind_what_is_known_before_anyone_asks(exact):
    encode(exact, FACTS[:2])
    assert encode(exact, FACTS[2:]) == 2
    assert check_equals_full(exact, FACTS).fallback is None
    assert encode(exact, FACTS) == 0


@pytest.mark.parametrize("change", ["erased", "changed", "first erased"])
def test_a_change_in_the_middle_cuts_the_history_back_to_before_it(exact, tmp_path, change):
    encode(exact, FACTS)
    if change == "changed":
        now = [FACTS[0], replace(FACTS[1], text="Ada Quill lives in Oslo."), *FACTS[2:]]
        stays = 1
    else:
        stays = 0 if change == "first erased" else 1
        now = [fact for fact in FACTS if fact is not FACTS[stays]]
        assert exact.queue.forget("n", [FACTS[stays].id]) == len(FACTS) - stays
        on_disk = b"".join(path.read_bytes() for path in (tmp_path / "blocks").rglob("*.safetensors"))
        # Neither the memory nor its name in the notes of what was encoded behind it.
        assert FACTS[stays].text.encode() not in on_disk and f'"{FACTS[stays].id}"'.encode() not in on_disk
    assert len(exact.queue.known_history("n", now, BASE)) == stays
    turn = check_equals_full(exact, now)
    assert turn.fallback == (
        f"text: the last {len(now) - stays} of {len(now)} blocks not encoded yet for this model version; queued"
    )
    assert encode(exact) == len(now) - stays
    assert check_equals_full(exact, now).fallback is None


def test_an_erased_history_does_not_come_back_through_a_request_that_waited(exact):
    encode(exact, FACTS)
    exact.queue.forget("n", ["bo"])
    encode(exact)
    logits(exact, FACTS, "prefix")  # recalled before the erasure
    encode(exact)
    assert exact.queue.known_history("n", FACTS, BASE) == []
    assert check_equals_full(exact, FACTS[1:]).fallback is None


def test_a_history_survives_a_restart_and_is_its_namespaces_own(small, exact, tmp_path):
    encode(exact, FACTS)
    again = make(small, tmp_path, encoder="kv_exact")
    assert check_equals_full(again, FACTS).fallback is None
    assert logits(again, FACTS, "prefix", namespace="other")[1].prefix_tokens == len(again.queue.builder.head)


def test_a_history_over_the_context_begins_anew_by_quarters(exact, monkeypatch):
    monkeypatch.setattr(exact.loaded.model.config, "max_position_embeddings", 512)
    memories = [RecalledMemory(id=str(i), text=f"Box {i} holds " + "amber " * 12) for i in range(60)]
    begins = []
    for count in range(1, len(memories) + 1):
        turn = GenerationStats(mode="prefix")
        kept = exact.injection._fitting(memories[:count], True, 60, turn)
        assert (len(kept) == count) == (turn.fallback is None)
        begins.append(kept[0].id)
    assert len(set(begins)) <= 9 and begins[0] == "0" and begins[-1] != "0"
    encode(exact, memories)  # ends, though not all of it will ever fit
    assert exact.queue.pending_blocks == 0


def test_a_history_has_no_single_best_memory_to_repeat(exact):
    with pytest.raises(InvalidInput, match="hybrid needs blocks of their own"):
        ask(exact, FACTS, "hybrid")


# kv_compact


@pytest.fixture(scope="module")
def head(loaded, builder):
    return kv.encode_head(loaded.model, builder.head)


def test_everything_kept_is_what_chunks_keep_and_batches_equal_one_by_one(loaded, builder, head):
    ids = [builder.memory(fact.text) for fact in FACTS]
    repeat = loaded.tokenizer.encode(REPEAT, add_special_tokens=False)
    whole = compacted(loaded.model, head, ids, repeat, 1)
    for states, chunk in zip(whole, Chunks().encode(loaded.model, head, ids), strict=True):
        assert torch.allclose(states, chunk.states, atol=TOLERANCE, rtol=0)
    encoder = Compact(2, loaded.tokenizer)
    together = encoder.encode(loaded.model, head, ids)
    for block, made in zip(ids, together, strict=True):
        [alone] = encoder.encode(loaded.model, head, [block])
        assert made.states.shape[3] == -(-len(block) // 2) and made.width == len(block)
        assert torch.allclose(alone.states, made.states, atol=TOLERANCE, rtol=0)
    assert loaded.model.config._attn_implementation == "sdpa"


def test_what_is_kept_says_more_than_as_much_kept_at_random(loaded, builder, head):
    """How far the first token's distribution moves from the whole block's, in nats, summed over the facts."""
    facts = FACTS[:3]
    ids = [builder.memory(fact.text) for fact in facts]
    questions = ["What does Bo Tarn keep?", "Where does Ada Quill live?", "Where is the Amber Mill?"]
    tails = [builder.tail([{"role": "user", "content": text}]) for text in questions]
    whole = kv.encode_blocks(loaded.model, head, ids)
    kept = [made.states for made in Compact(4, loaded.tokenizer).encode(loaded.model, head, ids)]
    rng = random.Random(1)

    def told(states):
        for state, block, tail in zip(states, ids, tails, strict=True):
            memory = kv.KVBlock(
                memory_id="m", fingerprint="f", ids=tuple(block), text="", states=state, width=len(block)
            )
            prefix = kv.assemble(head, [memory], loaded.model.model.rotary_emb.inv_freq, kv.INDEPENDENT)
            yield kv.prefill(loaded.model, prefix, tail)[1].log_softmax(-1)

    wanted = [*told(whole)]

    def distance(states):
        pairs = zip(wanted, told(states), strict=True)
        return sum(float((want.exp() * (want - got)).sum()) for want, got in pairs)

    def drawn(states, count):
        return states[:, :, :, sorted(rng.sample(range(states.shape[3]), count))]

    ours = distance(kept)
    others = [distance([drawn(s, k.shape[3]) for s, k in zip(whole, kept, strict=True)]) for _ in range(3)]
    assert ours < min(others)


def test_a_compact_block_takes_up_its_text_positions_with_fewer_slots(loaded, tmp_path):
    engine = make(loaded, tmp_path, encoder="kv_compact", compact=2, reprocess="none")
    encode(engine, FACTS)
    _, turn = logits(engine, FACTS, "prefix")
    sizes = [len(engine.queue.builder.memory(fact.text)) for fact in FACTS]
    head = len(engine.queue.builder.head)
    assert turn.fallback is None and turn.prefix_tokens == head + sum(-(-size // 2) for size in sizes)
    again = make(
        loaded, tmp_path, encoder="kv_compact", compact=2, best=1
    )  # best_last runs the first one as text
    _, turn = logits(again, FACTS, "prefix")
    assert turn.prefix_tokens == head + sum(-(-size // 2) for size in sizes[1:])
    answer, turn = ask(again, [FACTS[1], FACTS[0]], "prefix")
    assert turn.fallback is None and "Lisbon" in answer


# All of them


def test_the_encoder_and_its_parameters_are_part_of_the_fingerprint(small, tmp_path):
    settings = [{}, {"encoder": "kv_exact"}, {"encoder": "kv_compact"}, {"encoder": "kv_compact", "compact": 4},
                {"block_dtype": "int8"}]  # fmt: skip
    marks = {make(small, tmp_path, **recall).queue.fingerprint(BASE) for recall in settings}
    assert len(marks) == len(settings)
    encode(make(small, tmp_path), FACTS)
    assert ask(make(small, tmp_path, encoder="kv_compact"), FACTS, "prefix")[1].fallback
    assert isinstance(make_encoder(RecallConfig(encoder="kv_exact"), small), Exact)
    with pytest.raises(ValueError, match="first_k needs a slot for every token"):
        RecallConfig(encoder="kv_compact", reprocess="first_k")
    with pytest.raises(ValueError, match=r"needs recall\.soft_prompt"):
        RecallConfig(encoder="soft_prompt")


@pytest.mark.parametrize("encoder", ["kv_chunks", "kv_exact"])
def test_eight_bits_at_rest_answer_the_same(loaded, tmp_path, encoder):
    engine = make(loaded, tmp_path, encoder=encoder, block_dtype="int8")
    encode(engine, FACTS)
    given = run_alone(engine, case_of(FACTS[:2], "prefix"))
    assert given.turn.fallback is None
    size = sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*.safetensors"))
    tokens = sum(len(engine.queue.builder.memory(fact.text)) for fact in FACTS)
    assert size < 0.35 * tokens * 45 * 1024  # of 45 KiB a token in float32
    if encoder == "kv_exact":
        full = case_of(FACTS[:2], "full")
        assert_same_answers(engine, [full], [given], [run_alone(engine, full)])


def test_what_disk_had_no_room_for_falls_back_to_text_and_is_encoded_again(small, tmp_path):
    engine = make(small, tmp_path)
    encode(engine, FACTS[:1])
    [file] = (tmp_path / "blocks").rglob("*.safetensors")
    blocks = BlockStore(tmp_path / "blocks", 1 << 30, disk_bytes=2 * file.stat().st_size)
    weights = ModelVersions(small, AdapterStore(tmp_path / "adapters"), 1)
    engine = Engine(small, weights, blocks, RecallConfig())
    encode(engine, FACTS)
    assert blocks.evicted
    injected, turn = logits(engine, FACTS[:1], "prefix")
    assert turn.fallback and torch.equal(injected, logits(engine, FACTS[:1], "text")[0])
    for fact in FACTS[1:]:
        logits(engine, [fact], "prefix")
    assert engine.injection.fallbacks == blocks.misses == engine.queue.pending_blocks == blocks.evicted
    assert engine.queue.encode(small.model, BASE, limit=1, tokens=64) == 1
    assert logits(engine, FACTS[:1], "prefix")[1].fallback is None


def test_a_retired_version_leaves_nothing(small, tmp_path):
    engine = make(small, tmp_path)
    encode(engine, FACTS)
    ask(engine, FACTS, "prefix")
    engine.queue.enqueue("n", [RecalledMemory(id="new", text="Dee has a boat.")], BASE)
    assert engine.queue.retire(BASE) == len(FACTS)
    assert engine.queue.pending_blocks == 0 and not engine.queue._heads
    assert not [*(tmp_path / "blocks").rglob("*.safetensors")]
    assert ask(engine, FACTS, "prefix")[1].fallback
