"""Ranking of candidates, once over those of all shards. Open `ranking.py` first.

- `ranking.py`: fusion, overlap gate, concert weight, reranking, pages
- `order.py`: what has ended last, the query's own text and the newest statement first
- `evidence.py`: whether the results look like an answer
- `concert.py`: the concert weight: recency, similarity, novelty
"""
