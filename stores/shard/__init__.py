"""One shard: a durable log with its view, and every call on it. Open `shard.py` first.

- `shard.py`: `Shard`, which owns the parts below
- `core.py`: what the parts share: log, view, lock, group commit, snapshots
- `memories.py`: memories: put, supersede, race, import, touch, score, get, list, export
- `search.py`: search by meaning and words; completion of a partial cue
- `keyed.py`: keyed memories
- `conversations.py`: short-term memory of turns
- `graph.py`: queries of the fact graph and the place map
- `erasure.py`: forgetting, rotation of keys, the probe
- `chain.py`: head and verification of the anchor chain
- `reshard.py`: a shard's side of a reshard
"""
