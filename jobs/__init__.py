"""Entry points: the command line and the Ray jobs. Open `cli.py` first; of the jobs, `consolidate.py`.

- `cli.py`: the command `sharpwave`
- `score.py`, `consolidate.py`, `evaluate.py`: Ray jobs on a running instance
- `reader.py`, `soft_prompt.py`: trainings that need no instance
- `arguments.py`: options and start of every Ray job
- `commands/`: the commands of `sharpwave` by subject; `instance/`: start, update and stop an instance
- `scoring/`, `evaluation/`: the stages of the jobs; `demo/`: the whole loop on invented facts
"""
