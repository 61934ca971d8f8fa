"""The append-only log of a shard behind one protocol. When `commit` returns, the operations are on disk.

- `base.py`: the `Log` protocol, `Operation`, and what every backend does alike. Open it first
- `lmdb.py`: the default, one LMDB file in a folder that one process owns
- `jsonl.py`: lines of text that a person can read; `jsonl_lines.py` is one line, `jsonl_contents.py` a whole file
- `redis.py`: in a redis-server, for clusters; `redis_server.py` checks what that server keeps
- `encrypted.py`: in front of any of them, encryption
- `backend_marker.py`: which backend a log was made with
- `open.py`: opening one; `record.py`: one operation as bytes; `migrations.py`: logs of earlier formats
- `seal.py`: where every chain stood, kept apart from the logs

A caller goes through three steps, one thread at a time: `seen` (has this `op_id` been done?), `stage`
(the records, chained and numbered, nothing written), `commit` (a batch of operations, one fsync).
Opening a log begins a new epoch; whoever still holds an older one is refused from then on.
"""
