"""Leave-one-out scores of memories. Open `leave_one_out.py` first.

leave_one_out.py  how much each memory raises the likelihood of an answer, where memories are text
hidden_blocks.py  the same where they are key/value blocks
logprobs.py       log-probabilities of tokens from a pass's states
"""
