"""Stages of an evaluation: the arms base, memory and adapter on the same questions. Open `compare.py` first.

- `questions.py`: questions from the memories' cues
- `compare.py`: evaluate an arm without memory; compare the arms
- `evaluate_closed_book.py`: the process that answers from the weights alone
- `evaluate_with_memory.py`: answers of the running application, with memory
"""
