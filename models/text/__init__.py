"""Text before and beside the language model. Open `prompt.py` first.

prompt.py    from messages to token ids
messages.py  chat messages and their checks
tools.py     tools and their calls in prompts and answers
grammar.py   what an answer may be, as a grammar
embed.py     embeddings of texts
rerank.py    relevance of texts to a question
"""
