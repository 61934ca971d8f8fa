"""Stages of the score job. Open `compute.py` first.

- `conversations.py`: the conversations whose responses are scored
- `compute.py`: the divergence matrix on scorer actors, resumable
- `matrix.py`: the finished matrix: table, summary, picture
- `page.py`: the same as one HTML page
- `salience.py`: update of the memories' salience, once per measurement
"""
