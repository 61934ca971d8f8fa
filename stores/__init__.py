"""Memories and their durable shards; no Ray, no torch. Open `shard.py` first.

- `memory.py`: what a memory is; reading one from the API's JSON
- `ingest.py`: memories from JSON lines and chat transcripts
- `filters.py`: trees of and / or / not over comparisons, as predicates
- `record.py`: one operation of the log as bytes: CRC, salted digest, anchor
- `logs/`: the append-only log behind one protocol, and its backends; acknowledged means fsynced
- `batch.py`: group commit, writers of many threads share one fsync
- `writes.py`: everything that changes a shard; what each write does is planned before it is staged:
  `put.py` (with `gate.py`, what is stored and why not, and `twins.py`, near-identical memories),
  `revise.py` (new versions, races), `changes.py` (touch, score, forget, take), `plan.py` (looked up first)
- `turns.py`: short-term memory of conversations; `turn_writes.py`: its operations
- `lines.py`: memory lines by key, ranked by `concert.py`; `line_writes.py`: put, race, query, bias vector
- `entry.py`: a memory as a shard holds it: versions, statistics
- `decision.py`: what a store would do with a memory
- `episodic.py`: the episodic store: sparse keys, completion of a partial cue, strength; `recollect.py`:
  the shard's half of it
- `relational.py`: the relational store; with `facts.py` (triples, and what is none), `hops.py` (PageRank,
  paths, joined patterns) and `names.py` (spelling, aliases, mentions)
- `spatial.py`: the spatial store; with `places.py` (what the map knows), `directions.py` (its words),
  `layout.py` (positions), `whereabouts.py` (who is in what), `routes.py` (A*, macros), `merging.py`
- `graphs.py`: fact graph and place map as parts of a namespace, and what a write does to them, with
  `ahead.py` (the graph as it will be); `graph_reads.py`: the shard's questions to them
- `index.py`: cosine search over a namespace, by the structure that its size calls for; grows in the background
- `dense.py`, `gpu.py`: those structures in Faiss: flat, k-means tree, neighbour graph; the tree on a GPU
- `lexical.py`: BM25 over a namespace's texts
- `search.py`: the candidates of one shard, dense and lexical, through kinds and filter
- `rank.py`: fusion, overlap gate, concert weight, rerank, pages: once over the candidates of all shards
- `concert.py`: recency, novelty, concert weight, bias vector
- `view.py`: what the log says now, in memory; rebuilt from it on open
- `snapshots.py`: which snapshots of a shard are kept, when one is made; `snapshot.py` and `manifest.py`,
  their files; `frozen.py`, trained indexes in them; `rows.py`, memories as Arrow tables
- `transfer.py`: export and import as JSON lines, Parquet, rows
- `analytics.py`: SQL over snapshots
- `locks.py`: many readers or one writer
- `shard.py`: one log with its view
- `seal.py`: where every shard's chain stood, kept apart
- `crypto.py`: encryption at rest, a key a namespace; `master.py`: those keys at rest, and the master key
- `probe.py`: after an erasure, is the content anywhere?
- `migrate.py`: stores of the previous format
- `moving.py`: from the shards of one layout to those of the next
"""
