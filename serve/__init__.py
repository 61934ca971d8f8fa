"""The Ray Serve application. Open `api.py` first: every route; `app.py` wires the deployments together."""
