import json
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Conflict, InvalidInput, NotFound, NotReady, StoreCorrupt
from stores.crypto import master_key as masters
from stores.crypto.keyring import Keyring
from stores.crypto.master_key import MasterKey, new_master, parse_master, rotate_master, write_master

ROOT = Path(__file__).resolve().parents[3]
MASTER = MasterKey(bytes(range(32)))


@pytest.fixture
def keyring(tmp_path):
    return Keyring(tmp_path / "keys", MASTER)


# The cipher, against the vectors of the GCM specification (McGrew and Viega, test cases 13 to 16)

KEY_16 = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
PLAIN_16 = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
CIPHER_15 = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
)
VECTORS = [
    ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        "00" * 32,
        "00" * 12,
        "",
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (
        KEY_16,
        "cafebabefacedbaddecaf888",
        "",
        PLAIN_16 + "1aafd255",
        CIPHER_15 + "898015ad",
        "b094dac5d93471bdec1a502270e3cc6c",
    ),
    (
        KEY_16,
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        PLAIN_16,
        CIPHER_15,
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]


@pytest.mark.parametrize(("key", "nonce", "associated", "plain", "sealed", "tag"), VECTORS)
def test_the_cipher_is_aes_256_gcm(key, nonce, associated, plain, sealed, tag):
    key, nonce, associated, plain = map(bytes.fromhex, (key, nonce, associated, plain))
    assert AESGCM(key).encrypt(nonce, plain, associated).hex() == sealed + tag


def test_a_piece_has_the_documented_layout(keyring):
    """Opened by hand from the key file on, with nothing but the cipher."""
    sealed = keyring.encrypt("acme", b"content", b"context")
    assert sealed[0] == 1
    head, nonce, wrapped, content = sealed[:17], sealed[17:29], sealed[29:77], sealed[77:]
    noted = json.loads((keyring.folder / f"{head[1:].hex()}.key").read_text())
    inner = json.loads(
        AESGCM(MASTER.key).decrypt(
            bytes.fromhex(noted["nonce"]),
            b64decode(noted["wrapped"]),
            b"sharpwave key 1" + head[1:],
        )
    )
    assert (inner["namespace"], inner["number"]) == ("acme", 1)
    data_key = b64decode(inner["key"])
    piece = AESGCM(data_key).decrypt(nonce, wrapped, b"sharpwave piece 1\0acme\0" + head)
    assert AESGCM(piece).decrypt(bytes(12), content, b"sharpwave piece 1\0acme\0context") == b"content"


# Pieces


@given(data=st.binary(max_size=300), context=st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_opens_again_and_only_there(tmp_path_factory, data, context):
    keyring = Keyring(tmp_path_factory.getbasetemp() / "shared ring", MASTER)
    sealed = keyring.encrypt("acme", data, context)
    assert keyring.decrypt("acme", sealed, context) == keyring.decrypt_any(sealed, context) == data
    assert len(data) < 8 or data not in sealed
    assert keyring.encrypt("acme", data, context) != sealed
    with pytest.raises(StoreCorrupt):
        keyring.decrypt("acme", sealed, context + b"x")
    keyring.encrypt("other", b"")
    with pytest.raises(StoreCorrupt, match="another namespace"):
        keyring.decrypt("other", sealed, context)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_flipped_bit_is_found(tmp_path_factory, data):
    keyring = Keyring(tmp_path_factory.getbasetemp() / "shared ring", MASTER)
    sealed = bytearray(keyring.encrypt("acme", b"some content", b"context"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((StoreCorrupt, NotReady)):
        keyring.decrypt("acme", bytes(sealed), b"context")


@pytest.mark.parametrize("kept", [0, 1, 40, 76, 92])
def test_a_torn_piece_is_found(keyring, kept):
    sealed = keyring.encrypt("acme", b"content")
    with pytest.raises(StoreCorrupt):
        keyring.decrypt("acme", sealed[:kept])


def test_no_key_and_no_nonce_comes_twice(keyring):
    sealed = [keyring.encrypt("acme", b"the same content") for _ in range(2000)]
    assert len({piece[17:29] for piece in sealed}) == len({piece[77:] for piece in sealed}) == 2000


def test_threads_and_processes_that_meet_share_their_keys(keyring):
    def work(number):
        sealed[number] = [keyring.encrypt(f"n{i % 3}", f"{number} {i}".encode()) for i in range(30)]

    sealed = {}
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(keyring.folder.glob("*.key"))) == 3
    other = Keyring(keyring.folder, MASTER)
    for number, pieces in sealed.items():
        for i, piece in enumerate(pieces):
            assert other.decrypt(f"n{i % 3}", piece) == f"{number} {i}".encode()
    late = other.encrypt("late", b"made after the first keyring was read")
    assert keyring.decrypt("late", late) == b"made after the first keyring was read"
    keyring.destroy("late")
    other._present["late"].left = 0
    assert other.decrypt("late", other.encrypt("late", b"again")) == b"again", "under a fresh key"
    assert keyring.is_destroyed(late) and not other.is_destroyed(other.encrypt("late", b""))


# Keys


def test_names_and_keys_are_not_in_the_files(keyring):
    keyring.encrypt("a-very-secret-tenant", b"")
    for file in keyring.folder.iterdir():
        assert b"very-secret" not in file.read_bytes() and file.stat().st_mode & 0o077 == 0
    assert str(MASTER.key) not in repr(MASTER) and "key=" not in repr(MASTER)


def test_a_wrong_master_key_is_a_clear_error_at_open(keyring):
    keyring.encrypt("acme", b"x")
    other = new_master()
    with pytest.raises(InvalidInput, match=f"{MASTER.id}.*{other.id}") as caught:
        Keyring(keyring.folder, other)
    assert caught.value.param == "store.master_key" and other.text not in str(caught.value)


def test_a_destroyed_key_leaves_every_copy_unreadable(keyring, tmp_path):
    """Copies of the data made before, with the keyring as it is after, and as it was."""
    pieces = [keyring.encrypt("acme", f"secret {i}".encode()) for i in range(5)]
    keyring.rotate("acme")
    pieces.append(keyring.encrypt("acme", b"secret 5"))
    kept = keyring.encrypt("other", b"kept")
    files = [file for file in keyring.folder.glob("*.key")]
    inodes = {file.name: file.open("rb") for file in files}  # still see the old file's blocks
    wrapped = {file.name: json.loads(file.read_text())["wrapped"].encode() for file in files}
    assert keyring.destroy("acme") == 2 and keyring.destroy("acme") == 0
    for reader in (keyring, Keyring(keyring.folder, MASTER)):
        for piece in pieces:
            assert reader.is_destroyed(piece)
            with pytest.raises(NotFound) as caught:
                reader.decrypt("acme", piece)
            assert caught.value.code == "key_destroyed"
        assert reader.decrypt("other", kept) == b"kept" and reader.namespaces == ["other"]
    gone = [name for name, opened in inodes.items() if not opened.read().strip(b"\0")]
    assert len(gone) == 2, "the old blocks are zeros"
    folder = b"".join(file.read_bytes() for file in keyring.folder.iterdir())
    assert [name for name in wrapped if wrapped[name] not in folder] == gone
    fresh = keyring.encrypt("acme", b"a new life")
    assert keyring.decrypt("acme", fresh) == b"a new life" and keyring.is_destroyed(pieces[0])


def test_a_crash_while_a_key_is_destroyed_still_destroys_it(keyring):
    sealed = keyring.encrypt("acme", b"x")
    file = next(keyring.folder.glob("*.key"))
    masters.overwrite(file)
    for _ in range(2):
        reopened = Keyring(keyring.folder, MASTER)
        assert reopened.is_destroyed(sealed) and reopened.namespaces == []
    assert json.loads(file.read_text())["destroyed"]


def test_a_lost_key_differs_from_a_destroyed_one(keyring):
    sealed = keyring.encrypt("acme", b"x")
    next(keyring.folder.glob("*.key")).unlink()
    with pytest.raises(NotReady, match="gravestone") as caught:
        Keyring(keyring.folder, MASTER).decrypt("acme", sealed)
    assert caught.value.code == "key_missing"
    assert not Keyring(keyring.folder, MASTER).is_destroyed(sealed)


def test_a_changed_key_file_is_found(keyring):
    keyring.encrypt("acme", b"x")
    file = next(keyring.folder.glob("*.key"))
    noted = json.loads(file.read_text())
    file.write_text(json.dumps({**noted, "nonce": "00" * 12}))
    with pytest.raises(StoreCorrupt, match="key file"):
        Keyring(keyring.folder, MASTER)


def test_data_keys_rotate_and_content_bytes_stay(keyring):
    sealed = keyring.encrypt("acme", b"content", b"context")
    assert keyring.renew(sealed) == sealed
    keyring.rotate("acme")
    assert keyring.decrypt("acme", sealed, b"context") == b"content"
    renewed = keyring.renew(sealed)
    assert renewed[77:] == sealed[77:] and renewed[:77] != sealed[:77] and keyring.renew(renewed) == renewed
    assert keyring.drop_old("acme") == 1
    assert keyring.decrypt("acme", renewed, b"context") == b"content"
    with pytest.raises(NotFound):
        keyring.decrypt("acme", sealed, b"context")
    reopened = Keyring(keyring.folder, MASTER)
    assert reopened.decrypt("acme", renewed, b"context") == b"content"


def test_a_data_key_wraps_no_more_than_its_bound(keyring, monkeypatch):
    monkeypatch.setattr("stores.crypto.keyring.RESERVED", 4)
    monkeypatch.setattr("stores.crypto.keyring.MAX_PIECES", 8)
    sealed = [keyring.encrypt("acme", bytes([i])) for i in range(30)]
    used = [piece[1:17] for piece in sealed]
    assert max(used.count(id) for id in used) == 8
    assert [keyring.decrypt("acme", piece) for piece in sealed] == [bytes([i]) for i in range(30)]
    again = Keyring(keyring.folder, MASTER)  # what was reserved and not used is lost, never used twice
    assert again.encrypt("acme", b"")[1:17] not in used[:24]


def test_the_master_key_rotates_and_a_crash_half_way_is_made_good(keyring, monkeypatch):
    sealed = {f"n{i}": keyring.encrypt(f"n{i}", b"content") for i in range(6)}
    keyring.destroy("n5")
    fresh, real, calls = new_master(), masters.write_json, []

    def crash_at_the_third(path, value):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("cut off")
        real(path, value)

    monkeypatch.setattr(masters, "write_json", crash_at_the_third)
    with pytest.raises(OSError, match="cut off"):
        rotate_master(keyring.folder, MASTER, fresh)
    monkeypatch.undo()
    for master in (MASTER, fresh):
        with pytest.raises(InvalidInput):
            Keyring(keyring.folder, master)
    assert rotate_master(keyring.folder, MASTER, fresh) == 3
    rotated = Keyring(keyring.folder, fresh)
    for namespace, piece in sealed.items():
        if namespace != "n5":
            assert rotated.decrypt(namespace, piece) == b"content"
    assert rotated.is_destroyed(sealed["n5"])
    with pytest.raises(InvalidInput):
        Keyring(keyring.folder, MASTER)


def test_master_keys_are_read_strictly(tmp_path):
    master = new_master()
    write_master(tmp_path / "master", master)
    text = (tmp_path / "master").read_bytes()
    assert parse_master(text, "x") == master and (tmp_path / "master").stat().st_mode & 0o777 == 0o600
    with pytest.raises(Conflict):
        write_master(tmp_path / "master", new_master())
    for bad in (b"", b"secret", text[:-3], text[len(masters.MASTER_PREFIX) :], text + b"x", b"\xff" * 63):
        with pytest.raises(InvalidInput, match="the file") as caught:
            parse_master(bad, "the file")
        assert not bad or bad.decode(errors="replace").strip() not in str(caught.value)


def test_a_key_is_on_disk_before_it_seals(tmp_path):
    """Killed right after the first seal: what was sealed opens."""
    code = """
import os, sys
from pathlib import Path
from stores.crypto.keyring import Keyring
from stores.crypto.master_key import MasterKey
sealed = Keyring(Path(sys.argv[1]), MasterKey(bytes(range(32)))).encrypt("acme", b"content")
sys.stdout.buffer.write(sealed); sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "keys")], cwd=ROOT, capture_output=True)
    assert done.returncode == -9
    assert Keyring(tmp_path / "keys", MASTER).decrypt("acme", done.stdout) == b"content"
    shutil.rmtree(tmp_path / "keys")
