"""Thin Ray shells around plain classes. Open `shards.py` first: it holds every store call of the rest.

- `shards.py`: ShardedStore, the way to all shards
- `shard.py`: StoreShard, one actor a shard, and how they are started
- `scorers.py`: scorer actors and their dispatcher
"""
