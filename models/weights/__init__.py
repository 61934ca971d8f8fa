"""Weights of the base model and its adapter versions. Open `versions.py` first.

versions.py     the base and the adapter versions loaded on top of it
adapters.py     adapter versions on disk and their aliases
load.py         loads models and tokenizers
load_report.py  checks an adapter's keys and shapes before loading
"""
