"""An instance whose prefix is the whole history (`recall.encoder: kv_exact`), over HTTP."""

import time

import httpx
import pytest

from common import config
from jobs.instance import instance as instances

TEXTS = ["Bo Tarn works as a baker.", "Ada Quill lives in Lisbon.", "Cy Vell keeps a goat."]
QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


@pytest.mark.slow
def test_the_prefix_is_the_history_and_answers_as_it(tmp_path):
    store = tmp_path / "store"
    settings = config.load(
        overrides={"store.dir": str(store), "serve.port": 0, "recall.encoder": "kv_exact", "recall.k": 1}
    )
    try:
        running = instances.up(settings)
        with httpx.Client(base_url=running.url, timeout=180) as http:

            def write(*memories):
                given = [{"id": text.split()[0], "text": text} for text in memories]
                assert http.post("/v1/memories", json={"memories": given}).status_code == 200
                while http.get("/ready").json()["engine"]["pending_blocks"]:
                    time.sleep(0.1)

            def ask(mode):
                memory = {"namespace": "default", "mode": mode}
                body = {"messages": QUESTION, "max_tokens": 12, "memory": memory}
                answer = http.post("/v1/chat/completions", json=body).json()
                return answer["choices"][0]["message"]["content"], answer["memory"], answer["usage"]

            for text in TEXTS:
                write(text)
            said, told, used = ask("prefix")
            assert (told["fallback"], told["injected"]) == (None, ["Bo", "Ada", "Cy"])
            whole, _, full = ask("full")
            assert said == whole
            assert used["prompt_tokens"] + told["prefix_tokens"] == full["prompt_tokens"]

            receipt = http.delete("/v1/memories/Bo").json()
            assert receipt["forgotten"] == ["Bo"] and receipt["kv_blocks"] == 3
            said, told, _ = ask("prefix")
            assert said == ask("full")[0] and told["injected"] == ["Ada", "Cy"]
            engine = http.get("/ready").json()["engine"]
            assert engine["encoder"] == {"name": "kv_exact-1", "report": None} and engine["blocks"]["hits"]
    finally:
        instances.down(store)
