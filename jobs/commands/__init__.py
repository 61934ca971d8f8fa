"""The commands of `sharpwave`, by subject; `jobs/cli.py` registers them. Open `memories.py` first.

- `ask.py`: asks the model
- `memories.py`, `stores.py`, `sql.py`: write and read memories
- `teach_command.py`, `teach.py`: write the memories of files; `preview.py`: what that would write
- `jobs.py`: score, consolidate, evaluate
- `operations.py`, `keys.py`, `reshard.py`: what an operator does
- `client.py`: the HTTP client; `options.py`, `output.py`, `shown.py`: shared options and output
- `reference.py`: generates docs/cli.md, docs/config.md and sharpwave.yaml
"""
