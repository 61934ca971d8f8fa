"""All shards of a store as one, with the same parts as a shard. Open `sharded_store.py` first.

- `sharded_store.py`: `ShardedStore`, which owns the parts below
- `router.py`: which layout is in force, which actor to call, retries and deadlines
- `memories.py`: memories, on the shards that own them
- `search.py`: candidates of each shard, ranked once
- `support.py`: memories that lost what they were derived from
- `keyed.py`: keyed memories, on the home shard
- `graph.py`: facts and places, on the home shard
- `conversations.py`: turns, on the shard that the conversation picks
- `erasure.py`: erasure on every shard, with one receipt
- `chain.py`: seals and verification
"""
