"""Training of encoders. Open `reader.py` first.

reader.py          trains a reader of memories
reader_data.py     its scenes and questions
reader_teacher.py  answers that it learns from
soft_prompt.py     trains the soft-prompt encoder
"""
