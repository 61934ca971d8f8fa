"""Start, update and stop an instance, and run jobs on it. Open `instance.py` first.

- `instance.py`: `up`, `update`, `down`, and the record of an instance
- `deploy.py`: the Ray driver that starts or removes the application
- `waiting.py`: what is waited for meanwhile, and which log tells why it failed
- `submit.py`: run a job on an instance
- `source.py`: whether this code is a checkout or installed, and what child processes need to find it
- `processes.py`, `ports.py`: processes and ports of this machine
"""
