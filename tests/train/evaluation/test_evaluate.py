"""Evaluation: pure rules by hand, batched answers and scores against the naive way on the real small model."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from models.weights.load import LoadedModel
from tests.support.models import assert_greedy
from train.anchors import GENERAL, anchor_kl, load_or_make, make_anchors, neighbours
from train.evaluation.evaluate import (
    ask_batch,
    contains,
    continuation_log_probs,
    evaluate_arm,
    exact_match,
    is_refusal,
    normalise,
    sanity_accuracy,
    wilson,
)
from train.evaluation.sanity import sanity_items
from train.generation.chat import SHORTEST_SPAN, answer_ids, batches_by_length, prompt_ids
from train.generation.decode import end_tokens, write
from train.objective import answer_loss, common_start, kl_to_base, make_batch, position_logits, split_batch


def test_normalise_and_exact_match() -> None:
    assert normalise("  The CAT, sat on a mat!\n") == "cat sat on mat"
    assert exact_match("The Lisbon.", "lisbon") and exact_match("NYC", ["New York", "nyc"])
    assert not exact_match("in Lisbon", "Lisbon") and not exact_match("", "Lisbon")


def test_contains_looks_at_the_first_line_and_whole_words() -> None:
    assert contains("She lives in Lisbon.\nOr not.", "Lisbon")
    assert not contains("I am not sure.\nLisbon", "Lisbon")
    assert not contains("a caterpillar", "cat") and not contains("anything", "")


@pytest.mark.parametrize(
    "answer", ["", "  ", "I don't know.", "I\u2019m sorry, but I cannot", "It is not specified"]
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


def test_answers_are_no_refusals() -> None:
    assert not is_refusal("Lisbon") and not is_refusal("She knows the unknowable" + "x" * 80 + "unknown")


def test_wilson_against_published_values() -> None:
    assert wilson(50, 50)[0] == pytest.approx(0.929, abs=1e-3)
    assert wilson(35, 50)[0] == pytest.approx(0.562, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(0, 10)[0] == 0.0


def test_batches_hold_every_row_once_within_limits() -> None:
    lengths = [5, 1, 9, 9, 2, 30, 4]
    batches = batches_by_length(lengths, max_rows=3, max_tokens=20)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert batches[0] == [5], "a row over the limit is alone"
    assert all(len(b) <= 3 and (len(b) == 1 or len(b) * lengths[b[0]] <= 20) for b in batches)
    assert batches_by_length([], 1, 1) == []


def test_sanity_items_are_many_distinct_and_seeded() -> None:
    items = sanity_items(1)
    assert len(items) == 400 == len({(i.prefix, i.right, i.wrong) for i in items})
    assert items == sanity_items(1) != sanity_items(2)
    assert all(i.right != i.wrong and i.right.startswith(" ") and i.wrong.startswith(" ") for i in items)
    assert len({i.topic for i in items}) >= 8


def test_answer_loss_counts_forms_alike_and_ignores_padding() -> None:
    torch.manual_seed(0)
    batch = make_batch([([1, 2], [3]), ([1], [4, 5, 6]), ([1, 2, 3], [7])], pad=0)
    logits = torch.randn(len(batch.targets), 10)
    each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    wanted = (each[0] + each[1:4].mean()) / 2
    torch.testing.assert_close(answer_loss(logits, batch, torch.tensor([1.0, 1.0, 0.0])), wanted)
    assert answer_loss(logits, batch, torch.zeros(3)) == 0
    assert batch.ids.tolist() == [[1, 2, 0], [1, 4, 5], [1, 2, 3]]
    assert batch.targets.tolist() == [3, 4, 5, 6, 7] and batch.columns.tolist() == [1, 0, 1, 2, 2]


def test_a_shared_beginning_changes_neither_logits_nor_gradients(loaded: LoadedModel) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, lora)
    torch.manual_seed(0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:  # zero at the start: nothing would flow into A
            torch.nn.init.normal_(weights, std=0.02)
    pairs = [
        (prompt_ids(loaded.tokenizer, question, SHORTEST_SPAN), answer_ids(loaded.tokenizer, answer))
        for question, answer in (
            ("Where is Ada?", "Lisbon"),
            ("Who is it, then?", "a tall man"),
            ("Ada?", "x"),
        )
    ]
    batch = make_batch(pairs, pad=2)
    assert batch.shared >= 10
    found = []
    for each in (batch, replace(batch, shared=0)):
        model.zero_grad()
        logits = position_logits(model, each)
        answer_loss(logits, each, torch.ones(3)).backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    model.unload()
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-3, rtol=1e-3)


def test_split_batches_are_the_batches_of_their_rows() -> None:
    pairs = [([1, 2, 5], [3]), ([1, 2, 6], [4, 5]), ([1, 2, 7], [7])]
    first, rest = split_batch(make_batch(pairs, pad=0), 1)
    assert first.shared == rest.shared == 2
    assert (first.rows.tolist(), first.targets.tolist()) == ([0], [3])
    assert (rest.rows.tolist(), rest.targets.tolist(), rest.columns.tolist()) == (
        [0, 0, 1],
        [4, 5, 7],
        [2, 3, 2],
    )
    assert common_start([[1, 2], [1, 2, 3]]) == 2 and common_start([[1], [2]]) == 0


def test_kl_is_zero_at_the_base_and_a_lower_bound() -> None:
    torch.manual_seed(0)
    base, student = torch.randn(6, 50), torch.randn(6, 50)
    top = base.log_softmax(-1).topk(20)
    assert float(kl_to_base(base, top.values, top.indices).mean()) == pytest.approx(0.0, abs=1e-5)
    exact = torch.nn.functional.kl_div(student.log_softmax(-1), base.softmax(-1), reduction="batchmean")
    estimate = kl_to_base(student, top.values, top.indices).mean()
    assert 0 < float(estimate) <= float(exact) + 1e-6
    everything = base.log_softmax(-1).topk(50)
    torch.testing.assert_close(
        kl_to_base(student, everything.values, everything.indices).mean(), exact, atol=1e-4, rtol=1e-4
    )


def test_batched_greedy_equals_one_by_one(loaded: LoadedModel) -> None:
    questions = [
        "What is the capital of France?",
        "Hi",
        "Which animal says moo, and where does it live in winter?",
    ]
    model, tokenizer = loaded.model, loaded.tokenizer
    prompts = [prompt_ids(tokenizer, question, SHORTEST_SPAN) for question in questions]
    ends = end_tokens(model, tokenizer)
    together = write(model, prompts, ends, max_new_tokens=16)
    for prompt, tokens in zip(prompts, together, strict=True):
        assert_greedy(model, prompt, tokens)
        assert not ends & {*tokens[:-1]} and (tokens[-1] in ends or len(tokens) == 16)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in together]
    assert ask_batch(model, tokenizer, questions) == texts
    assert ask_batch(model, tokenizer, []) == []


def test_log_probs_equal_the_naive_sum_and_share_passes(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    pairs = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " Rome"),
        ("My", " unbelievable story"),
    ]
    rows = [tuple(tokenizer(t, add_special_tokens=False).input_ids for t in pair) for pair in pairs]
    found = continuation_log_probs(loaded.model, tokenizer, rows)
    for (prefix, tail), value in zip(rows, found, strict=True):
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([[*prefix, *tail]])).logits[0].log_softmax(-1)
        naive = sum(float(logits[len(prefix) - 1 + i, token]) for i, token in enumerate(tail))
        assert value == pytest.approx(naive, abs=1e-3)


def test_base_model_passes_sanity_and_knows_no_invented_fact(loaded: LoadedModel) -> None:
    items = sanity_items(7, count=100)
    accuracy, correct = sanity_accuracy(loaded.model, loaded.tokenizer, items)
    assert accuracy == sum(correct) / 100 and accuracy >= 0.9
    questions = [{"question": "Where does Quillen Zorbek live?", "answer": "Oslo", "kind": "episodic"}]
    arm = evaluate_arm(loaded.model, loaded.tokenizer, questions, items[:4])
    assert (arm["em"], arm["n"], arm["by_kind"]) == (0.0, 1, {"episodic": 0.0})
    assert len(arm["sanity_correct"]) == 4 and arm["low"] == 0.0


def test_anchors_are_seeded_and_at_no_distance(loaded: LoadedModel) -> None:
    prompts = [prompt_ids(loaded.tokenizer, question, SHORTEST_SPAN) for question in GENERAL[:5]]
    one, two, other = (make_anchors(loaded.model, loaded.tokenizer, prompts, 6, seed) for seed in (3, 3, 4))
    assert [anchor.text for anchor in one] == [anchor.text for anchor in two] != [a.text for a in other]
    assert anchor_kl(loaded.model, one, loaded.tokenizer.eos_token_id) == pytest.approx(0.0, abs=1e-3)
    assert anchor_kl(loaded.model, [], 0) == 0.0


def test_anchors_are_kept_in_a_file_and_held_out_ones_apart(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.anchors.WIDE_TOKENS", 3)
    given: dict[str, Any] = {"others": ["Where does Ada live?"], "count": 15, "seed": 1}
    made = load_or_make(tmp_path, loaded.model, loaded.tokenizer, "digest", **given)
    monkeypatch.setattr("train.anchors.make_anchors", None)  # the second time nothing is made
    again = load_or_make(tmp_path, loaded.model, loaded.tokenizer, "digest", **given)
    assert [anchor.text for anchor in again.near] == [anchor.text for anchor in made.near]
    assert torch.equal(again.wide[0].log_probs, made.wide[0].log_probs)
    assert (len(made.wide), len(made.near), len(made.held_out)) == (8, 9, 4)
    seen = {tuple(anchor.prompt) for anchor in (*made.wide, *made.near)}
    assert not seen & {tuple(anchor.prompt) for anchor in made.held_out}


def test_neighbours_ask_the_same_about_other_names() -> None:
    asked = [
        "Where does Brevo Tavdan live?",
        "What is beside the Brevo Inn?",
        "What is rain?",
        "Is Brevo in?",
    ]
    found = neighbours(asked, seed=1)
    assert found == neighbours(asked[::-1], seed=1) and len(found) == 3
    assert not any("Brevo" in question or "Tavdan" in question for question in found)
    assert any(re.fullmatch(r"What is beside the [A-Z]\w+ Inn\?", question) for question in found)
    assert any(re.fullmatch(r"Where does [A-Z]\w+ [A-Z]\w+ live\?", question) for question in found)
    assert any(re.fullmatch(r"Is [A-Z]\w+ in\?", question) for question in found)
