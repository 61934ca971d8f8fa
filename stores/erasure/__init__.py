"""Probes for content that was erased. Open `disk_probe.py` first.

- `disk_probe.py`: every file of a store
- `shard_probe.py`: a running shard: log, memories, indexes
"""
