"""Memories from files that people have: exports of other systems, transcripts, notes. Open `reader.py` first.

- `reader.py`: `FileReader`, the memories of a file, whatever it is; what is left out and why
- `recognise.py`: which format a JSON document or a file is in, by its content
- `documents.py`: the JSON documents of a stream one by one, past bad ones
- `chat.py`: what a format's reader yields; the experiences of a conversation
- `split.py`: a text over the size limit as several
- `formats/`: one small file a format; each turns a document into experiences
"""
