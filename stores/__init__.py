"""Memories and their durable shards; no Ray, no torch. Open `shard/shard.py` first.

From there follow a write (`shard/memories.py`, `writes/group_commit.py`, `writes/put.py`, `log/base.py`,
`view/view.py`) or a search (`shard/search.py`, `reads/search.py`, `ranking/ranking.py`). The rooms, from the top;
a room imports only rooms below it:

    shard       one shard: log, view, lock and group commit, and its parts with every call
    transfer    export and import of files; what a reshard reads from a log
    erasure     probes for content that was erased
    writes      planning of every change: put, versions, updates, erasures; group commit
    snapshots   files that open faster than the log; SQL over them
    reads       searches of one shard, and recall from a partial cue
    view        all namespaces in memory, built from the log alone
    ranking     fusion, overlap gate, concert weight, reranking, pages
    places      the place map: positions, locations, routes
    log         the append-only log: one protocol, three backends, encryption
    index       vector search by cosine and lexical search by BM25
    facts       the fact graph: triples, validity, traversal
    imports     memories from files of other systems, transcripts and notes
    memory      what a memory is, its validation and filters
    crypto      encryption at rest under one data key a namespace
    locks.py    a lock for many readers or one writer
"""
