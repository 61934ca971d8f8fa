"""Snapshots of a shard: a cache of the log that opens faster. Open `manager.py` first.

- `manager.py`: which snapshots are kept, and when one is made
- `files.py`: one snapshot as files, written and loaded
- `manifest.py`: what a snapshot covers, and the digests of its files
- `arrow.py`: memories as columns of an Arrow table
- `sql.py`: SQL over snapshots
"""
