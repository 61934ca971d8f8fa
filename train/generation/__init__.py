"""Generation during training. Open `decode.py` first.

decode.py  batched decoding
chat.py    prompts of the generator
"""
