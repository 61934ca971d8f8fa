"""Ranking of candidates, once over those of all shards. Open `ranking.py` first.

- `ranking.py`: fusion, overlap gate, concert weight, reranking, pages
- `concert.py`: the concert weight: recency, similarity, novelty
"""
