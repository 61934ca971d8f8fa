"""Routes by subject, one router a file. Open `memories.py` first.

- `memories.py`: write, list, search, forget; get, update, delete, history of one memory
- `language.py`: OpenAI's routes and scores of responses; `openai_responses.py`: `/v1/responses`
- `stores.py`: facts, places, memory lines, short-term memory of conversations
- `transfer.py`: export and import of a namespace
- `adapters.py`: adapter versions and their aliases
- `mem0.py`: mem0's interface, where the configuration asks for it
- `offline_docs.py`: `/docs` without the internet
- `operations.py`: seal, verify, snapshot, probe, restart of a shard, key rotation
"""
