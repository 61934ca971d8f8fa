"""Reads of one shard that go beyond a lookup. Open `search.py` first.

- `search.py`: dense and lexical candidates under kinds and a filter
- `cue_recall.py`: recall of an episode from a partial cue
- `sparse_keys.py`: sparse keys, pattern separation and completion
"""
