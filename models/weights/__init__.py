"""Weights of the base model and its adapter versions. Open `versions.py` first.

versions.py     the base and the adapter versions loaded on top of it
adapters.py     adapter versions on disk and their aliases
adapter_files.py  whether an adapter's files are whole by themselves
load.py         loads models and tokenizers
load_report.py  checks an adapter's keys and shapes against the model before loading
"""
