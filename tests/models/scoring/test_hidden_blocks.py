"""Hidden blocks against their oracle: a prefix without the block, and one pass for each row and conversation."""

import numpy as np
import pytest

from models.kv import prefix as kv
from models.scoring.hidden_blocks import HiddenBlocks, closed_up
from tests.support.hidden import FACTS, TOLERANCE, naive, without

POLICIES = [
    kv.INDEPENDENT,
    kv.Policy(kind="first_k", first_k=2),
    kv.Policy(kind="best_last", best=1),
    kv.Policy(kind="best_last", best=2),
]
OMISSIONS = [(), (0,), (1,), (2,), (3,), (0, 2), (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def transcripts(builder):
    talks = [
        ["Where does Ada live?", "Lisbon"],
        ["What does Bo do?", "Bo is a baker.", "And what does Dee play?", "The harp, I think."],
        ["Which animal does Cy keep?", "A goat", "Sure?", ""],
    ]
    roles = ["user", "assistant"]
    return [
        builder.transcript(
            [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], memories=True
        )
        for turns in talks
    ]


def blocks_of(loaded, builder):
    model, ids = loaded.model, [builder.memory(fact) for fact in FACTS]
    head = kv.encode_head(model, builder.head)
    states = kv.encode_blocks(model, head, ids)
    blocks = [
        kv.KVBlock(memory_id=fact, fingerprint="f", ids=tuple(own), text=fact, states=state, width=len(own))
        for fact, own, state in zip(FACTS, ids, states, strict=True)
    ]
    return head, blocks, model.model.rotary_emb.inv_freq


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.kind}-{policy.best}")
@pytest.mark.parametrize(
    ("model", "batch_tokens"),
    [("tiny", 64), ("tiny", 4096), pytest.param("loaded", 256, marks=pytest.mark.slow)],
)
def test_a_hidden_block_is_one_taken_out_and_a_closed_gap_another_prefix(
    request, builder, transcripts, model, batch_tokens, policy
):
    loaded = request.getfixturevalue(model)
    head, blocks, frequency = blocks_of(loaded, builder)
    prefix = kv.assemble(head, blocks, frequency, policy)
    rows = HiddenBlocks(prefix, transcripts).rows(loaded.model, OMISSIONS, batch_tokens=batch_tokens)
    assert rows.shape == (len(OMISSIONS), 5)
    for row, omitted in zip(rows, OMISSIONS, strict=True):
        assert row == pytest.approx(
            naive(loaded.model, without(prefix, omitted, {FACTS[i] for i in omitted}), transcripts),
            abs=TOLERANCE,
        )
    moved = [
        closed_up(loaded.model, head, blocks, frequency, policy, transcripts, omitted)
        for omitted in OMISSIONS
    ]
    for row, omitted in zip(moved, OMISSIONS, strict=True):
        others = kv.assemble(head, [b for i, b in enumerate(blocks) if i not in omitted], frequency, policy)
        assert row == pytest.approx(naive(loaded.model, others, transcripts), abs=TOLERANCE)
    assert moved[0] == pytest.approx(rows[0], abs=TOLERANCE)
    apart = np.abs(np.delete(rows, 4, axis=1) - np.delete(rows[:1], 4, axis=1))  # the last response is empty
    assert (apart[1:].max(axis=1) > 100 * TOLERANCE).all() and not rows[:, 4].any()


def test_the_memory_that_an_answer_states_stands_out(loaded, builder, transcripts):
    head, blocks, frequency = blocks_of(loaded, builder)
    prefix = kv.assemble(head, blocks, frequency, kv.Policy(kind="best_last", best=1))
    scoring = HiddenBlocks(prefix, transcripts)
    base, again, *rows = scoring.rows(loaded.model, [(), (), (0,), (1,), (2,), (3,)])
    assert np.abs(base - again).max() < TOLERANCE
    divergence = base - np.stack(rows)
    assert divergence[:, 0].argmax() == 0 and divergence[0, 0] > 1.0
    assert divergence[:, 3].argmax() == 2


def test_a_history_has_owners_too(loaded, builder):
    _, blocks, _ = blocks_of(loaded, builder)
    head = blocks[0].states[:, :, :, :2]
    prefix = kv.laid(head, blocks[:2])
    sizes = [2, blocks[0].slots, blocks[1].slots]
    assert prefix.owners.tolist() == [
        owner for owner, n in zip((-1, 0, 1), sizes, strict=True) for _ in range(n)
    ]
