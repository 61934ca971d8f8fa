"""What a memory is, and how one comes in. Open `memory.py` first.

- `memory.py`: `Memory`, `parse_memory` (the only entry for input from outside), ids and digests
- `filters.py`: filters of the API as predicates
"""
