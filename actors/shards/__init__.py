"""One shard as a Ray actor. Open `actor.py` first.

- `actor.py`: `StoreShard`
- `calls.py`: which calls a client may make, and what each call carries
- `admission.py`: the bounded queue in front of a shard's threads
- `shard_phase.py`: what a shard may do while the layout changes
- `processes.py`: starting, finding and ending shard processes
"""
