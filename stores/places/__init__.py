"""The place map of a namespace. Open `map.py` first.

- `map.py`: `PlaceMap`, the queries
- `observations.py`: what the map stores: observations, coordinates, events and ways
- `layout.py`: positions of a connected group of places from observations
- `directions.py`: the vocabulary of spatial relations
- `locations.py`: where things are, over time
- `routes.py`: paths by A*, with macros for those often walked
- `near_duplicate_places.py`: places that were observed under two similar names
"""
