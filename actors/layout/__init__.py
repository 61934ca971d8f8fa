"""How a store is divided into shards. Open `layout.py` first.

- `layout.py`: `ShardLayout` and the protocol of its durable record
- `placement.py`: which shard holds what, as pure functions
- `file_record.py`: the record as a file
- `redis_record.py`: the record in a redis-server
- `records.py`: choosing the record, and publishing the layout to clients
"""
