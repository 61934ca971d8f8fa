"""Everything torch, nothing Ray. Open `engine.py` first: a request from messages to an answer."""
