"""Encryption at rest. Open `keyring.py` first.

- `keyring.py`: one random data key a namespace, and the pieces encrypted under it
- `master_key.py`: the master key, and data keys at rest wrapped by it
- `keyrings.py`: the keyrings of all shards at once, for decryption only
"""
