"""Thin Ray shells around plain classes. Open `store/sharded_store.py` first.

- `store/`: `ShardedStore`, all shards as one store, and the way of a call to its shard
- `shards/`: `StoreShard`, one actor a shard: admission, phases, processes
- `layout/`: how a store is divided into shards, and the durable record of it
- `start.py`: starting and stopping the shards of a store
- `reshard.py`: changing the number of shards while the store serves
- `scorers.py`: scorer actors and their dispatcher
"""
