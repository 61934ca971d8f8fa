"""The whole loop on invented facts, as a demonstration and a test. Open `demo.py` first.

- `demo.py`: the stages: teach, recall, score, consolidate, evaluate
- `demo_data.py`: the invented facts and questions
- `report.py`: report.json and report.md
"""
