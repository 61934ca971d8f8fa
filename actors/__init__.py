"""Thin Ray shells around plain classes. Open `shards.py` first: it holds every store call of the rest.

- `shards.py`: ShardedStore, the way to all shards; `home.py`: its calls that go to one shard
- `route.py`: which layout holds, which actor, until when
- `placement.py`: where things live, as pure functions
- `layout.py`: how a store is divided, and the durable record of it; `layout_redis.py`: the same in Redis
- `shard.py`: StoreShard, one actor a shard; `calls.py`: what may be called on it
- `admission.py`: the bounded queue in front of a shard's threads
- `guard.py`: what a shard may do while the layout changes around it
- `start.py`: starting, finding and stopping shards
- `reshard.py`: another number of shards, while the store serves
- `scorers.py`: scorer actors and their dispatcher
"""
