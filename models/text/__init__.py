"""Text before and beside the language model. Open `prompt.py` first.

prompt.py    from messages to token ids
messages.py  chat messages and their checks
embed.py     embeddings of texts
rerank.py    relevance of texts to a question
"""
