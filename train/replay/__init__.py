"""Selection of the memories to replay. Open `rounds.py` first.

rounds.py   plans the rounds of replay
sampler.py  prioritised sampling of memories
forms.py    the forms in which a memory is replayed
"""
