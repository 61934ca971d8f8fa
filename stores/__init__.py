"""Memories and their durable shards; no Ray, no torch.

Open `shard.py` first: one log with its view, and every call that a shard takes. From there follow a write
(`writes.py`, `batch.py`, `put.py`, `logs/base.py`, `view.py`) or a search (`search.py`, `rank.py`). Each module
below belongs to one group; the first of a group is the one to open.

    A memory        memory      what it is; the one door for input from outside
                    ingest      from JSON lines and chat transcripts
                    filters     and / or / not over comparisons, as a predicate
                    entry       as a shard holds it: versions, statistics
    The log         logs/       one protocol, three backends, encryption; acknowledged means fsynced
                    record      one operation as bytes: CRC, salted digest, anchor
                    seal        where every chain stood, kept apart
                    migrate     logs of the previous format
    Writing         writes      everything that changes a shard
                    batch       group commit: writers of many threads share one fsync
                    plan        what is looked up before anything is staged
                    put         what becomes of each new memory, with gate (stored or not, and why) and twins
                                (near-identical memories)
                    revise      new versions, races
                    changes     touch, score, forget, take
    What it says    view        all namespaces in memory, made from the log alone
                    locks       many readers or one writer
    Searching       search      one shard's candidates, through kinds and filter
                    index       cosine, by the structure that a namespace's size calls for; dense, gpu: those
                                structures in Faiss
                    lexical     BM25
                    rank        fusion, overlap gate, concert weight, rerank, pages: once for all shards
                    concert     recency, novelty, concert weight, bias vector
    SparseKeys        episodic    sparse keys, completion of a partial cue, strength
                    recollect   the shard's calls to it
    Facts, places   graphs      both as parts of a namespace, and what a write does to them
                    graph_reads the shard's questions to them
                    decision    what a store would do with a memory
    Facts           relational  the fact graph
                    facts       triples, and what is none
                    hops        PageRank, paths, joined patterns
                    names       spelling, aliases, mentions
                    ahead       the graph as it will be, while a write is planned
    Places          spatial     the place map: the questions
                    places      what the map knows
                    directions  the words for relations
                    layout      positions from observations
                    whereabouts who is in what, when
                    routes      A*, macros
                    merging     near-duplicate places
    By key, by turn lines       memory lines; line_writes: put, race, query, bias vector
                    turns       short-term memory of conversations; turn_writes: its operations
    Snapshots       snapshots   which are kept, when one is made
                    snapshot    one of them as files; manifest, frozen (trained indexes), rows (as Arrow tables)
                    analytics   SQL over them
    Moving          transfer    export and import: JSON lines, Parquet, rows
                    moving      from the shards of one layout to those of the next
                    carried     a memory on its way: what may come along, and how it becomes an entry again
                    anew        memories written again with all that is known of them
    Erasure         crypto      encryption at rest, a key a namespace
                    master      those keys at rest, and the master key
                    rings       the keys of all shards at once, for reading
                    probe       after an erasure, is the content anywhere?
"""
