"""Every model family that is let in, tiny and random: a block equals the text, wherever it is moved to."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.kv import prefix as kv
from models.weights.load import check_architecture

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}
FAMILIES = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": None}),
    ("gemma", {}),
    *(
        ("llama", {"rope_parameters": {"rope_type": name, "rope_theta": 1e4, **more}})
        for name, more in SCALED.items()
    ),
]
HEAD, BLOCKS, TAIL = [*range(3, 14)], [[*range(20, 29)], [*range(40, 47)]], [*range(60, 66)]


@pytest.fixture(params=FAMILIES, ids=lambda family: f"{family[0]} {family[1]}")
def model(request):
    kind, options = request.param
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    check_architecture(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # the usual small weights would hide an error below the tolerance
        parameter.data.mul_(4.0)
    return model


def encoded(model):
    head = kv.encode_head(model, HEAD)
    states = kv.encode_blocks(model, head, BLOCKS)
    blocks = [
        kv.KVBlock(memory_id=str(i), fingerprint="f", ids=tuple(ids), text="", states=state, width=len(ids))
        for i, (ids, state) in enumerate(zip(BLOCKS, states, strict=True))
    ]
    return head, blocks


def test_one_block_equals_the_text(model):
    head, blocks = encoded(model)
    for block in blocks:
        prefix = kv.assemble(head, [block], model.model.rotary_emb.inv_freq, kv.INDEPENDENT)
        logits = kv.prefill(model, prefix, TAIL)[1]
        text = kv.prefill(model, None, [*HEAD, *block.ids, *TAIL])[1]
        assert torch.allclose(logits, text, atol=TOLERANCE, rtol=0)


def test_a_moved_block_equals_one_encoded_there(model):
    """With nothing in front of it, a text has the same states wherever it stands, but for its keys' rotation."""
    distance, frequency = 37, model.model.rotary_emb.inv_freq
    ids = torch.tensor([BLOCKS[0]])
    found = []
    for start in (0, distance):
        cache = kv.DynamicCache(config=model.config)
        with torch.inference_mode():
            positions = torch.arange(start, start + ids.shape[1])[None]
            model(input_ids=ids, position_ids=positions, past_key_values=cache)
        found.append(kv.stacked(cache)[:, :, 0])
    moved = kv.rotated(found[0], distance, frequency)
    assert torch.allclose(moved, found[1], atol=TOLERANCE, rtol=0)
    assert not torch.allclose(found[0], found[1], atol=100 * TOLERANCE, rtol=0)


def test_a_block_behind_another_run_again_equals_the_text(model):
    head, blocks = encoded(model)
    prefix = kv.assemble(head, blocks, model.model.rotary_emb.inv_freq, kv.Policy(kind="best_last", best=1))
    logits = kv.prefill(model, prefix, TAIL)[1]
    text = kv.prefill(model, None, [*HEAD, *BLOCKS[1], *BLOCKS[0], *TAIL])[1]
    assert torch.allclose(logits, text, atol=TOLERANCE, rtol=0)
