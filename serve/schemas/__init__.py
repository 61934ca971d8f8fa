"""Bodies of requests and responses, as pydantic models. Open `requests.py` first.

- `requests.py`: bodies of memories, chat, completions, embeddings and scores
- `tools.py`: tools, formats of answers, parameters of OpenAI that are harmless or refused
- `openai_responses.py`: the body of `/v1/responses`, as a chat request
- `stores.py`: bodies of facts, places, lines, conversations and operations
- `mem0.py`: bodies of mem0's interface
- `responses.py`: models of the responses, for `/openapi.json`
- `times.py`: the type of every time in a request
"""
