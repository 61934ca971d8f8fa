"""Evaluation of adapters. Open `acceptance_gate.py` first.

acceptance_gate.py  decides whether an adapter is accepted
evaluate.py         measures recall of memories
sanity.py           checks that general abilities are kept
"""
