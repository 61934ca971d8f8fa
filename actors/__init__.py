"""Thin Ray shells around plain classes. Open `shards.py` first: it holds every store call of the rest.

shards.py   StoreShard, one actor a shard, and ShardedStore, the way to all of them
"""
