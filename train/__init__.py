"""From stored memories to a LoRA adapter that answers without them. Open `trainer.py` first.

replay.py draws memories by priority, forms.py turns them into questions, rounds.py streams them, loop.py
trains on them and stays close to the base (anchors.py, objective.py); evaluate.py and gate.py decide.
"""
