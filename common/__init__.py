"""Shared by all folders. Open `errors.py` first.

- `errors.py`: every error that is raised on purpose
- `config.py`: one YAML file, sections by component
- `files.py`: atomic, durable file writes
- `names.py`: what a namespace and an id of a memory may be called
- `api_keys.py`: what an API key opens
- `types.py`: JSON values, memory modes
- `keys.py`: secret keys, named in the configuration by location
"""
