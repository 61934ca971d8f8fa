"""The HTTP service: a Ray Serve application of one API, the language model and the embedder. Open `api.py` first.

- `api.py`: the application of one API replica: routers, health, readiness, metrics, the page
- `app.py`: wires the deployments together and starts them
- `engine_replica.py`, `embedder_replica.py`: the deployments that hold the language model and the embedder
- `engines.py`: the client of all language model replicas: routing, and calls that every one must get
- `parts.py`: what route handlers use: store, engines, embedder, adapters, recall, the caller's rights
- `answers.py`: chat and completions: recall, engine, OpenAI's format
- `openai_answers.py`: that format, whole or streamed; `tool_calls.py`: calls of tools in an answer's text
- `openai_responses.py`: responses of `/v1/responses`, and the conversations they continue
- `writing.py`: memories out of a request; write, update, erase
- `extraction.py`: what the served model finds stated in a conversation
- `recall.py`: which memories a request gets
- `pages.py`: all memories of a namespace, page by page
- `access.py`: API keys and their namespaces
- `model_names.py`: models whose names say the memory, as `base:off@acme`
- `http.py`: error format, body limit, CORS
- `encodings.py`: gzip bodies
- `telemetry.py`: counters and their Prometheus text
- `mem0_filters.py`: mem0's filters and its shape of a memory
- `queries.py`: unknown parameters of URLs are refused
- `access_log.py`: where Serve's line for each request goes
- `routes/`: the routes by subject; `schemas/`: request and response bodies
"""
