"""Memories and their durable shards; no Ray, no torch. Open `shard.py` first.

- `memory.py`: what a memory is; reading one from the API's JSON
- `ingest.py`: memories from JSON lines and chat transcripts
- `filters.py`: trees of and / or / not over comparisons, as predicates
- `record.py`: one operation of the log as bytes: CRC, salted digest, anchor
- `log.py`: the append-only log in LMDB; acknowledged means fsynced
- `gate.py`: what is stored, and why not
- `plan.py`: what a put would do, decided before anything is written
- `index.py`: cosine search over a namespace, by the structure that its size calls for; grows in the background
- `dense.py`, `gpu.py`: those structures in Faiss: flat, k-means tree, neighbour graph; the tree on a GPU
- `lexical.py`: BM25 over a namespace's texts
- `search.py`: the candidates of one shard, dense and lexical, through kinds and filter
- `rank.py`: fusion, overlap gate, concert weight, rerank, pages: once over the candidates of all shards
- `concert.py`: recency, novelty, concert weight, bias vector
- `view.py`: what the log says now, in memory; rebuilt from it on open
- `locks.py`: many readers or one writer
- `shard.py`: one log with its view
"""
