"""The append-only log of a shard behind one protocol. Open `base.py` first.

When `commit` returns, the operations are on disk.

- `base.py`: the `Log` protocol, `Operation`, and what all backends share
- `lmdb.py`: the default, one LMDB file in a folder that one process owns
- `jsonl.py`: human-readable lines; `jsonl_lines.py` is one line, `jsonl_contents.py` a whole file
- `redis.py`: in a redis-server, for clusters; `redis_server.py` checks that server's settings
- `encrypted.py`: encryption in front of any backend
- `backend_marker.py`: which backend wrote a log
- `open.py`: opening a log
- `record.py`: one operation as bytes
- `migrations.py`: logs of earlier formats
- `seal.py`: the heads of all chains, kept apart from the logs

A writer takes three steps, one thread at a time: `seen` (was this `op_id` done before?), `stage` (chain and number
the records, write nothing), `commit` (a batch of operations, one fsync). Opening a log begins a new epoch; an owner
that still holds an older one is refused from then on.
"""
