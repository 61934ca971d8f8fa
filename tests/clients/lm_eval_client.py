"""EleutherAI's evaluation harness against the server, and against the same weights in `transformers`.

    python tests/clients/lm_eval_client.py URL KEY FOLDER

FOLDER holds the served weights and their tokenizer. The log-likelihoods of all choices have to agree within `NATS`,
and rolling ones within as much a token.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from steps import run
from transformers import AutoTokenizer

NATS = 1e-3
CAPITALS = """France Paris, Spain Madrid, Portugal Lisbon, Italy Rome, Germany Berlin, Austria Vienna, Poland Warsaw,
Greece Athens, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, Ireland Dublin, Hungary Budapest,
Romania Bucharest, Bulgaria Sofia, Ukraine Kyiv, Russia Moscow, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Ghana Accra,
Nigeria Abuja, Senegal Dakar, Morocco Rabat, Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, Nepal
Kathmandu, Iran Tehran, Iraq Baghdad, Syria Damascus, Cuba Havana, Peru Lima, Chile Santiago, Ecuador Quito, Canada
Ottawa, Australia Canberra, Belgium Brussels, Latvia Riga, Estonia Tallinn, Lithuania Vilnius, Serbia Belgrade, Croatia
Zagreb, Slovenia Ljubljana, Qatar Doha, Oman Muscat, Jordan Amman, Lebanon Beirut"""
PAIRS = [tuple(pair.split()) for pair in CAPITALS.split(",")]
TEXTS = [
    "= Lighthouse = \n\n The lighthouse of Porto Velho was built in 1874 by a company of four brothers . It was "
    "rebuilt twice , the last time after the storm of 1911 , and has been empty since 1968 .",
    "The choir met on Mondays until the roof leaked; since then it has met on Thursdays, in the library's basement, "
    "where the echo is worse but the chairs are better. Nobody has complained so far.",
    'Água é vida. 水は命です。 E = mc² and 6 ÷ 2 = 3; "quoted" text,\ttabs, and\n\n\nblank lines.',
]


def items() -> list[dict[str, Any]]:
    """100 questions: each country's capital and each capital's country, with three neighbours of the list."""
    found = []
    for asked, answer, question in ((0, 1, "The capital of {} is"), (1, 0, "{} is the capital of")):
        for n, pair in enumerate(PAIRS):
            choices = [PAIRS[(n + step) % len(PAIRS)][answer] for step in (0, 7, 19, 33)]
            turned = n % 4
            choices = choices[turned:] + choices[:turned]
            found.append(
                {
                    "query": question.format(pair[asked]),
                    "choices": choices,
                    "gold": choices.index(pair[answer]),
                }
            )
    return found


def write_task(name: str, rows: list[dict[str, Any]], **fields: Any) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path(f"{name}.jsonl").resolve())}},
        "test_split": "test",
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump({**data, **fields}))


def write_tasks() -> None:
    write_task(
        "capitals",
        items(),
        output_type="multiple_choice",
        doc_to_text="{{query}}",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=[{"metric": "acc"}],
    )
    write_task(
        "texts",
        [{"page": text} for text in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{page}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    write_task(
        "answers",
        [{"query": f"What is the capital of {pair[0]}?", "answer": pair[1]} for pair in PAIRS[:5]],
        output_type="generate_until",
        doc_to_text="{{query}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match"}],
    )


def evaluate(
    task: str, model: str, model_args: dict[str, Any], **more: Any
) -> tuple[dict[str, Any], list[Any]]:
    """Metrics of a task, and what the model answered to each of its items, in order."""
    tasks = TaskManager(include_path=".", include_defaults=False)
    found = simple_evaluate(
        model=model, model_args=model_args, tasks=[task], task_manager=tasks, bootstrap_iters=0, **more
    )
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return found["results"][task], [sample["filtered_resps"] for sample in samples]


def served(url: str) -> dict[str, Any]:
    return {
        "model": "base",
        "base_url": f"{url}/v1/completions",
        "tokenizer": sys.argv[3],
        "tokenizer_backend": "huggingface",
        "num_concurrent": 1,
        "max_retries": 1,
        "timeout": 600,
    }


def both(task: str, url: str, key: str) -> list[tuple[dict[str, Any], list[Any]]]:
    os.environ["OPENAI_API_KEY"] = key
    here = {"pretrained": sys.argv[3], "dtype": "float32"}
    return [
        evaluate(task, "local-completions", served(url), batch_size=8),
        evaluate(task, "hf", here, batch_size=8, device="cpu"),
    ]


def choices_as_transformers(url: str, key: str) -> None:
    (metrics, ours), (expected, theirs) = both("capitals", url, key)
    assert len(ours) == len(theirs) == 100
    differences = [
        abs(one[0] - other[0])
        for row, other_row in zip(ours, theirs, strict=True)
        for one, other in zip(row, other_row, strict=True)
    ]
    accuracies = metrics["acc,none"], expected["acc,none"]
    print(
        f"note accuracy {accuracies[0]:.2f} and {accuracies[1]:.2f}, "
        f"{len(differences)} log-likelihoods at most {max(differences):.1e} nats apart"
    )
    assert len(differences) == 400 and max(differences) < NATS, max(differences)
    assert accuracies[0] == accuracies[1], accuracies


def rolling_as_transformers(url: str, key: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
    (_, ours), (_, theirs) = both("texts", url, key)
    differences = [
        abs(float(one[0]) - float(other[0])) / len(tokenizer.encode(text))
        for one, other, text in zip(ours, theirs, TEXTS, strict=True)
    ]
    print(f"note rolling at most {max(differences):.1e} nats a token apart")
    assert max(differences) < NATS, differences


def generate_by_chat(url: str, key: str) -> None:
    os.environ["OPENAI_API_KEY"] = key
    where = {"model": "base", "base_url": f"{url}/v1/chat/completions", "max_retries": 1, "timeout": 600}
    _, answers = evaluate("answers", "local-chat-completions", where, apply_chat_template=True)
    assert len(answers) == 5 and all(answer[0] for answer in answers), answers


def generate_by_completions(url: str, key: str) -> None:
    os.environ["OPENAI_API_KEY"] = key
    _, answers = evaluate("answers", "local-completions", served(url))
    assert len(answers) == 5, answers


if __name__ == "__main__":
    write_tasks()
    run(choices_as_transformers, rolling_as_transformers, generate_by_chat, generate_by_completions)
