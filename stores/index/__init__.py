"""Vector and lexical search over one namespace. Open `vector_index.py` first.

- `vector_index.py`: cosine search by the structure that the size calls for, built in the background
- `faiss_structures.py`: those structures in Faiss: flat, k-means tree, neighbour graph
- `gpu_ivf.py`: the k-means tree on a GPU
- `serialization.py`: a trained index as bytes
- `vectors.py`: types and checks of vectors
- `passages.py`: further vectors of long texts
- `terms.py`: the words of a text, in any script
- `bm25.py`: BM25, candidates by tantivy
"""
