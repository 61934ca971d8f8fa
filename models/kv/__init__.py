"""KV blocks and the prefix they form. Open `prefix.py` first.

prefix.py                positions, assembly and prefill of a prefix of blocks
blocks.py                store of blocks in memory and on disk
tiers.py                 bounds of the memory tiers
quantised.py             int8 states
erasure_marks.py         erasures that every process must see
safetensors_metadata.py  metadata of a block's file
"""
