"""Planning and group commit of every change to a shard. Open `group_commit.py` first.

- `group_commit.py`: concurrent writers share one batch and one fsync
- `batch.py`: `MemoryBatch`, memories with their embeddings
- `lookups.py`: request digests, id conflicts, neighbours, novelty
- `put.py`: what becomes of each memory of a put
- `write_gate.py`: the score that decides whether a memory is stored
- `near_duplicates.py`: when an episode is a near duplicate of another
- `versions.py`: new versions of a memory, and races of candidates
- `keyed.py`: candidates for a key and their weights
- `graph_planner.py`: decisions about facts and places
- `updates.py`: touch, score, import
- `erase.py`: which records, memories and turns an erasure removes
- `rewrite.py`: replacing memories with complete new records
- `kept_results.py`: results of operations done under an earlier layout
"""
