"""Bodies of requests and responses, as pydantic models. Open `requests.py` first.

- `requests.py`: bodies of memories, chat, completions, embeddings and scores
- `stores.py`: bodies of facts, places, lines, conversations and operations
- `responses.py`: models of the responses, for `/openapi.json`
- `openai.py`: builds chat and completion responses in OpenAI's format
"""
