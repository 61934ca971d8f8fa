"""Memories and their durable shards; no Ray, no torch. Open `shard.py` first.

- `memory.py`: what a memory is; reading one from the API's JSON
- `ingest.py`: memories from JSON lines and chat transcripts
- `filters.py`: trees of and / or / not over comparisons, as predicates
- `record.py`: one operation of the log as bytes: CRC, salted digest, anchor
- `log.py`: the append-only log in LMDB; acknowledged means fsynced
- `gate.py`: what is stored, and why not
- `decision.py`: what a store would do with a memory
- `episodic.py`: the episodic store: sparse keys, completion of a partial cue, strength
- `relational.py`: the relational store; with `facts.py` (triples, and what is none), `hops.py` (PageRank,
  paths, joined patterns) and `names.py` (spelling, aliases, mentions)
- `spatial.py`: the spatial store; with `places.py` (what the map knows), `directions.py` (its words),
  `layout.py` (positions), `whereabouts.py` (who is in what), `routes.py` (A*, macros), `merging.py`
- `plan.py`: what a put would do, decided before anything is written
- `index.py`: exact cosine search in Faiss
- `view.py`: what the log says now, in memory; rebuilt from it on open
- `locks.py`: many readers or one writer
- `shard.py`: one log with its view
"""
