"""Memories on their way out of a shard and into another. Open `files.py` first.

- `files.py`: export and import as JSON lines, Parquet, or rows
- `row_schema.py`: validation of an imported row
- `reshard.py`: what a reshard reads from a shard's log
"""
