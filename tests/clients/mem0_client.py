"""mem0's own client (mem0ai 2) against a running instance with `serve.mem0`: its quick start, unchanged.

    python tests/clients/mem0_client.py http://127.0.0.1:8099 KEY

The package is no dependency of the project.
"""

import os

from steps import run

os.environ.setdefault("MEM0_TELEMETRY", "False")


def quick_start(url: str, key: str) -> None:
    from mem0 import MemoryClient
    from mem0.exceptions import MemoryNotFoundError

    client = MemoryClient(host=url, api_key=key)
    messages = [
        {"role": "user", "content": "Hi, I'm Alex. I'm a vegetarian and I'm allergic to nuts."},
        {
            "role": "assistant",
            "content": "Hello Alex! I've noted that you're a vegetarian with a nut allergy.",
        },
    ]
    added = client.add(messages, user_id="alex", metadata={"topic": "food"})["results"]
    assert len(added) == 2 and added[0]["event"] == "ADD", added
    found = client.search("What can I cook for dinner?", filters={"user_id": "alex"}, top_k=3)["results"]
    assert {one["id"] for one in found} <= {one["id"] for one in added} and found, found
    page = client.get_all(filters={"user_id": "alex"}, page=1, page_size=50)
    assert page["count"] == 2 == len(client.get_all(filters={"AND": [{"user_id": "alex"}]})["results"])

    id = added[0]["id"]
    assert client.get(id)["memory"] == messages[0]["content"]
    client.update(id, text="I eat fish now.", metadata={"topic": "fish"})
    assert client.get(id)["memory"] == "I eat fish now."
    assert [one["event"] for one in client.history(id)] == ["ADD", "UPDATE"]
    assert [one["name"] for one in client.users()["results"] if one["type"] == "user"] == ["alex"]
    client.delete(id)
    try:
        client.get(id)
    except MemoryNotFoundError as error:
        assert "no memory" in str(error), error
    else:
        raise AssertionError("it is still there")
    client.delete_all(user_id="alex")
    assert client.get_all(filters={"user_id": "alex"})["count"] == 0
    assert client.add("I like soup.", user_id="alex")["results"]
    client.delete_users(user_id="alex")
    try:
        client.search("soup")
    except Exception as error:
        assert "user_id" in str(error), error
    else:
        raise AssertionError("a search of everybody's memories")
    try:
        MemoryClient(host=url, api_key="nobody's key")
    except ValueError as error:
        assert "API key" in str(error), error
    else:
        assert key == "none", "an unknown key was let in"


if __name__ == "__main__":
    run(quick_start)
