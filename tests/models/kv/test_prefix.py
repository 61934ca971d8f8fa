"""The injected prefix against its oracle, the same ids as text."""

import pytest
import torch
from transformers import AutoConfig, GemmaConfig, LlamaConfig, MistralConfig

from common.errors import InvalidInput
from models.kv import prefix as kv
from models.weights.load import check_architecture

# float32, |logit| about 20: what two orders of the same sums differ by.
TOLERANCE = 2e-4

TEXTS = [
    "Ada Quill lives in Lisbon.",
    "Bo Tarn works as a baker and keeps a goat called Rex in the yard.",
    "The Amber Mill is north of the Old Gate.",
    "",
]
POLICIES = [
    kv.INDEPENDENT,
    kv.Policy(kind="first_k", first_k=8),
    *(kv.Policy(kind="best_last", best=n) for n in (1, 2)),
]
QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


@pytest.fixture(scope="module")
def head(loaded, builder):
    return kv.encode_head(loaded.model, builder.head)


@pytest.fixture(scope="module")
def blocks(loaded, builder, head):
    ids = [builder.memory(text) for text in TEXTS]
    states = kv.encode_blocks(loaded.model, head, ids)
    return [
        kv.KVBlock(
            memory_id=str(i),
            fingerprint="mark",
            ids=tuple(tokens),
            text=text,
            states=state,
            width=len(tokens),
        )
        for i, (tokens, text, state) in enumerate(zip(ids, TEXTS, states, strict=True))
    ]


@pytest.fixture(scope="module")
def frequency(loaded):
    return loaded.model.model.rotary_emb.inv_freq


def text_logits(loaded, builder, blocks):
    """Logits behind the same pieces as text, the most relevant block last."""
    ids = builder.head + [token for block in reversed(blocks) for token in block.ids] + builder.tail(QUESTION)
    return kv.prefill(loaded.model, None, ids)[1]


def prefix_logits(loaded, builder, head, blocks, frequency, kind, **numbers):
    prefix = kv.assemble(head, blocks, frequency, kv.Policy(kind=kind, **numbers))
    return kv.prefill(loaded.model, prefix, builder.tail(QUESTION))[1]


@pytest.mark.parametrize("i", range(len(TEXTS)))
def test_one_block_equals_the_text_prompt(loaded, builder, head, blocks, frequency, i):
    injected = prefix_logits(loaded, builder, head, [blocks[i]], frequency, "none")
    assert torch.allclose(injected, text_logits(loaded, builder, [blocks[i]]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["first_k", "best_last"])
@pytest.mark.parametrize("count", [2, 3])
def test_running_every_later_token_again_equals_the_text_prompt(
    loaded, builder, head, blocks, frequency, kind, count
):
    chosen = blocks[:count]
    injected = prefix_logits(loaded, builder, head, chosen, frequency, kind, first_k=1000, best=count - 1)
    assert torch.allclose(injected, text_logits(loaded, builder, chosen), atol=TOLERANCE, rtol=0)


def test_independent_blocks_differ_from_text_which_is_why_policies_exist(
    loaded, builder, head, blocks, frequency
):
    plain = prefix_logits(loaded, builder, head, blocks[:3], frequency, "none")
    assert (plain - text_logits(loaded, builder, blocks[:3])).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("policy", POLICIES)
def test_slots_and_processed_tokens_add_up(head, blocks, frequency, policy):
    prefix = kv.assemble(head, blocks, frequency, policy)
    total = head.shape[3] + sum(len(block.ids) for block in blocks)
    assert prefix.length == total
    assert prefix.slots == prefix.lay().shape[3]
    assert prefix.slots + len(prefix.again) == total
    positions = sorted([*prefix.positions.tolist(), *(position for _, position in prefix.again)])
    assert positions == list(range(total))


@pytest.mark.parametrize("policy", POLICIES)
def test_many_blocks_are_laid_as_one_by_one(head, blocks, frequency, policy):
    chosen = [blocks[i % len(blocks)] for i in range(2 * kv.LAID_AT_ONCE + 5)]
    prefix = kv.assemble(head, chosen, frequency, policy)
    parts = [head]
    for piece in prefix.pieces:
        moved = kv.rotated(piece.block.states, piece.distance, frequency)
        parts.append(moved[..., piece.skip :, :])
    # The sines of many distances at once and of one may differ in their last bit.
    assert torch.allclose(prefix.lay(), torch.cat(parts, dim=3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", [1, 7, 500, 4000])
def test_rotation_equals_encoding_at_the_new_position(loaded, builder, blocks, frequency, distance):
    """On the first layer, whose inputs do not depend on position: the rotation alone is compared."""
    ids = torch.tensor([builder.memory(TEXTS[0])])
    layers = []
    for start in (0, distance):
        cache = kv.DynamicCache(config=loaded.model.config)
        positions = torch.arange(start, start + ids.shape[1])[None]
        with torch.inference_mode():
            loaded.model(input_ids=ids, position_ids=positions, past_key_values=cache)
        layers.append(kv.stacked(cache)[:1, :, 0])
    moved = kv.rotated(layers[0], distance, frequency)
    assert torch.allclose(moved, layers[1], atol=5e-3, rtol=0)
    assert torch.equal(moved[:, 1], layers[0][:, 1])  # values carry no position


def test_rotation_is_additive_and_undone_by_its_inverse(blocks, frequency):
    states = blocks[1].states
    there = kv.rotated(states, 300, frequency)
    assert torch.allclose(kv.rotated(kv.rotated(states, 100, frequency), 200, frequency), there, atol=1e-4)
    assert torch.allclose(kv.rotated(there, -300, frequency), states, atol=1e-4)


def test_stored_blocks_are_never_changed_by_generation(loaded, builder, head, blocks, frequency):
    before = [block.states.clone() for block in blocks]
    head_before = head.clone()
    for policy in POLICIES:
        for chosen in (blocks[:1], blocks):
            prefix = kv.assemble(head, chosen, frequency, policy)
            cache, logits, position = kv.prefill(loaded.model, prefix, builder.tail(QUESTION))
            for _ in range(3):
                logits = kv.step(loaded.model, cache, int(logits.argmax()), position)
                position += 1
    assert torch.equal(head, head_before)
    assert all(torch.equal(block.states, copy) for block, copy in zip(blocks, before, strict=True))


def test_batched_encoding_equals_one_by_one(loaded, builder, head, blocks):
    for block in blocks:
        [alone] = kv.encode_blocks(loaded.model, head, [block.ids])
        assert torch.allclose(alone, block.states, atol=TOLERANCE, rtol=0)


def test_fingerprint_depends_on_each_part(loaded, builder):
    config, dtype = loaded.model.config, torch.float32
    base = kv.fingerprint("m", "", builder.head, config, dtype, "e")
    assert kv.fingerprint("m", "", builder.head, config, dtype, "e") == base
    others = [
        kv.fingerprint("n", "", builder.head, config, dtype, "e"),
        kv.fingerprint("m", "adapter", builder.head, config, dtype, "e"),
        kv.fingerprint("m", "", builder.head[:-1], config, dtype, "e"),
        kv.fingerprint("m", "", builder.head, config, torch.bfloat16, "e"),
        kv.fingerprint("m", "", builder.head, config, dtype, "f"),
    ]
    assert len({base, *others}) == 6


def test_architectures_that_would_be_served_wrongly_are_refused():
    for config in (LlamaConfig(), MistralConfig(sliding_window=None), GemmaConfig()):
        check_architecture(config)
    for kind in ("qwen2", "qwen3"):
        check_architecture(AutoConfig.for_model(kind))
        with pytest.raises(InvalidInput, match="full_attention"):
            check_architecture(AutoConfig.for_model(kind, use_sliding_window=True, max_window_layers=2))
    with pytest.raises(InvalidInput, match="'gemma2' is not supported"):
        check_architecture(AutoConfig.for_model("gemma2"))
    with pytest.raises(InvalidInput, match="sliding window of 4096"):
        check_architecture(MistralConfig())
    with pytest.raises(InvalidInput, match="'dynamic', whose angles change"):
        check_architecture(
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
        )
