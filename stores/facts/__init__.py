"""The fact graph of a namespace. Open `graph.py` first.

- `graph.py`: `FactGraph`: facts with confidence, provenance and validity
- `fact.py`: a fact and its assertions; which memories are no usable triple
- `names.py`: normalised names, aliases, mentions in a text
- `traversal.py`: PageRank, shortest paths, joins of patterns
- `planned_graph.py`: the graph as it will be after the writes being planned
- `decision.py`: what a store does with a fact or an observation
"""
