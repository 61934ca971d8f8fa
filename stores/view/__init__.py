"""The state of a shard in memory, built from its log alone. Open `view.py` first.

- `view.py`: `View` (all namespaces) and `Space` (one namespace)
- `memory_state.py`: a memory with its versions and statistics
- `keyed.py`: the newest memory of each key, ranked by concert weight
- `conversations.py`: the turns of each conversation
- `graph_views.py`: the fact graph and the place map as parts of a namespace
"""
