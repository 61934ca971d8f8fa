"""One file a format. `fits(document)` recognises it, `read(document)` yields experiences in the API's shape and what
was left out. `transcripts.py` is the plainest chat, `chatgpt.py` the most involved.

- `experiences.py`: our own shape
- `transcripts.py`: OpenAI's messages, alone or as lines for fine-tuning
- `chatgpt.py`, `claude.py`: the exports of both applications
- `sharegpt.py`, `langchain.py`: chats as data sets and LangChain keep them
- `mem0.py`, `letta.py`: memories of other memory systems
- `notes.py`: Markdown and plain text
"""
