"""Encoders of memories into KV blocks. Open `encoders.py` first.

encoders.py        the encoders by name
encoding_queue.py  which blocks exist, which are to be encoded, which must not come back
compact.py         encoder that keeps fewer slots than tokens
soft_prompt.py     encoder that a training learns
"""
