"""The cross-encoder path on a real model of random weights, saved to a folder as a user's would be."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from common.errors import NotFound
from models.text.embed import locate
from models.text.rerank import Reranker
from stores.ranking import ranking


def saved(folder: Path, labels: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(locate("minilm"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, num_labels=labels,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_best_come_in_the_order_of_the_cross_encoder(tmp_path: Path) -> None:
    model = Reranker(saved(tmp_path / "one", labels=1))
    texts = ["Ada lives in Lisbon.", "The cat sleeps.", "Bread is baked at night."]
    hits = [
        {"memory": {"id": str(i), "text": text, "time": 0.0, "kind": "episodic",
                    "statistics": {"novelty": 1.0, "usage": 0, "last_used": None}},
         "scores": {"dense": 0.9 - 0.1 * i, "lexical": None}, "words": None}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    results, stages = ranking.ranked("full", "Where does Ada live?", hits, 3, now=1.0, rerank=model.scores)
    scores = model.scores(texts, "Where does Ada live?")
    wanted = sorted(range(3), key=lambda i: -scores[i])
    assert len(set(scores)) == 3 and [result["memory"]["id"] for result in results] == [
        str(i) for i in wanted
    ]
    assert stages[-2]["stage"] == "rerank" and model.scores([], "x") == []


def test_a_reranker_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="3 numbers"):
        Reranker(saved(tmp_path / "three", labels=3))
    with pytest.raises(NotFound, match="cannot be loaded"):
        Reranker(str(tmp_path / "absent" / "model"))
