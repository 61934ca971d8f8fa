"""Continuous batching of generation requests. Open `engine.py` first.

engine.py            model, versions and passes; `Engine.step` is the loop's body
scheduler.py         order of requests and admission to the KV cache
request.py           one request, from its prompt to its last token
generation_stats.py  statistics of one request
injection.py         from messages and memories to the prompt that runs
sampling.py          choice of the next token, streaming of text
masks.py             compiled grammars, and which tokens they allow next
kv_cache.py          keys and values of the requests that decode together
cuda_graphs.py       passes of fixed shape, recorded as CUDA graphs
attribution.py       what each injected memory did to an answer
bias_overlay.py      memories as a bias of the logits or a low-rank overlay
"""
