"""Public clients against a running instance: `make clients` runs `run.py`. One script a client, each in an environment
without this project; no part of the default suite."""
