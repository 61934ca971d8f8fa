"""Entry points: the command line (`cli.py`), a local instance (`instance.py`), and what `ray job submit` runs."""
