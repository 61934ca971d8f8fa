"""Leave-one-out scores of memories. Open `leave_one_out.py` first.

leave_one_out.py  how much each memory raises the likelihood of an answer
"""
