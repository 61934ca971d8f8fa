"""Adapter versions: immutable LoRA artifacts on disk. Does not import torch, so that the API process can use it.

    <folder>/<digest>/adapter_model.safetensors, adapter_config.json, manifest.json
    <folder>/aliases.json                                {"latest": digest}

A version's name is the digest of its weights and configuration, so a name always means the same weights.
Names in requests: `base`, `base:latest` (an alias), `base:<digest>`.
"""

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import Conflict, InvalidInput, NotFound
from common.files import read_json, sync_folder, write_bytes, write_json
from common.types import MODES
from models.weights.adapter_files import FILES, fault_of

BASE = ""
WITHDRAWN = "withdrawn.json"  # digests


class AdapterStore:
    """The versions on disk. Every change is one atomic rename, so other processes never see half of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, source: Path, manifest: dict[str, Any], *, alias: str | None = "latest") -> str:
        """Copy a PEFT folder in as a version, then point `alias` at it. Returns its digest.

        Publishing the same weights again has no effect. Raises `InvalidInput` if files are missing or damaged; whether
        they fit a model `ModelVersions.check` says.
        """
        if fault := fault_of(source):
            raise InvalidInput(f"adapter folder {source}: {fault}; save the adapter again", param="adapter")
        digest = adapter_digest(source)
        if not self.has(digest):
            self._copy(source, digest, manifest)
        if alias is not None:
            self.set_alias(alias, digest)
        return digest

    def set_alias(self, alias: str, digest: str) -> None:
        """Point `alias` at this version. Raises `NotFound` if it does not exist, `Conflict` if it is damaged, and
        `InvalidInput` for an alias that means a memory mode in a model's name."""
        if alias in MODES:
            raise InvalidInput(
                f"alias = {alias!r}: must be none of {', '.join(MODES)}, which mean memory modes in a model's name",
                param="alias",
            )
        with self._changing():
            self.check(digest)
            self.check_whole(digest)
            write_json(self.folder / "aliases.json", {**self.aliases(), alias: digest})

    def retire(self, digest: str, *, with_aliases: bool = False) -> None:
        """Remove a version. Raises `NotFound`, and `Conflict` if an alias that is not removed as well names it."""
        with self._changing():
            self.check(digest)
            aliases = self.aliases()
            naming = [alias for alias, named in aliases.items() if named == digest]
            if naming and not with_aliases:
                raise Conflict(
                    f"adapter {digest} is what {', '.join(naming)} names; move the alias first, or retire it "
                    "with its aliases",
                    param="adapter",
                    code="adapter_in_use",
                )
            if naming:
                rest = {alias: named for alias, named in aliases.items() if named != digest}
                write_json(self.folder / "aliases.json", rest)
            if digest in (withdrawn := self._withdrawn()):
                write_json(self.folder / WITHDRAWN, [other for other in withdrawn if other != digest])
            grave = Path(tempfile.mkdtemp(dir=self.folder, prefix=".retired-"))
            (self.folder / digest).rename(grave / digest)
            sync_folder(self.folder)
        shutil.rmtree(grave, ignore_errors=True)

    def withdraw(self, namespace: str, memory_ids: set[str]) -> list[str]:
        """No alias names the versions trained on any of these memories any more: it moves to the newest version of the
        namespace that was never withdrawn and is whole, or without one to the base. Returns the withdrawn versions;
        they can still be asked for by digest, and named again."""
        outdated = self.holding(namespace, memory_ids)
        if not outdated:
            return []
        with self._changing():
            withdrawn = sorted({*self._withdrawn(), *outdated})
            write_json(self.folder / WITHDRAWN, withdrawn)
            moved = [alias for alias, digest in self.aliases().items() if digest in outdated]
            if moved:
                instead = self._newest_clean(namespace, withdrawn)
                write_json(self.folder / "aliases.json", {**self.aliases(), **dict.fromkeys(moved, instead)})
        return outdated

    def _newest_clean(self, namespace: str, withdrawn: Sequence[str]) -> str:
        for manifest in reversed(self.manifests()):
            digest = manifest["digest"]
            if manifest.get("namespace") == namespace and digest not in withdrawn:
                with contextlib.suppress(Conflict, NotFound):
                    self.check_whole(digest)
                    return str(digest)
        return BASE

    def _withdrawn(self) -> list[str]:
        path = self.folder / WITHDRAWN
        return read_json(path) if path.is_file() else []

    def aliases(self) -> dict[str, str]:
        path = self.folder / "aliases.json"
        return read_json(path) if path.is_file() else {}

    def has(self, digest: str) -> bool:
        return digest.isalnum() and (self.folder / digest / "manifest.json").is_file()

    def check(self, digest: str) -> None:
        """Raises `NotFound`."""
        if not self.has(digest):
            raise NotFound(f"adapter {digest!r} does not exist", param="adapter", code="adapter_not_found")

    def check_whole(self, digest: str, folder: Path | None = None) -> None:
        """Raises `Conflict` if the version's files, or their copy in `folder`, are not as they were published."""
        folder = folder or self.folder / digest
        fault = fault_of(folder)
        if fault is None and adapter_digest(folder) != digest:
            fault = "its content is not what it was when it was published"
        if fault:
            raise Conflict(
                f"adapter {digest} is damaged: {fault}; retire it and publish it again",
                param="model",
                code="adapter_damaged",
            )

    def manifest(self, digest: str) -> dict[str, Any]:
        """Raises `NotFound`."""
        self.check(digest)
        try:
            return read_json(self.folder / digest / "manifest.json")
        except FileNotFoundError:  # retired between the two
            self.check(digest)
            raise

    def manifests(self) -> list[dict[str, Any]]:
        """Manifests of all versions, oldest first."""
        # Folders with a dot are copies in progress, which glob would match as well.
        digests = [path.parent.name for path in self.folder.glob("*/manifest.json")]
        found = []
        for digest in filter(str.isalnum, digests):
            with contextlib.suppress(NotFound):  # retired meanwhile
                found.append(self.manifest(digest))
        return sorted(found, key=lambda manifest: (manifest.get("created", 0.0), manifest["digest"]))

    def holding(self, namespace: str, memory_ids: set[str]) -> list[str]:
        """Versions trained on any of these memories; an erasure reports them."""
        return [
            manifest["digest"]
            for manifest in self.manifests()
            if manifest.get("namespace") == namespace and memory_ids & set(manifest.get("memory_ids", ()))
        ]

    def trained_on(self, namespace: str) -> set[str]:
        """The memories that the versions of a namespace which have an alias were trained on."""
        named = {*self.aliases().values()}
        return {
            id
            for manifest in self.manifests()
            if manifest.get("namespace") == namespace and manifest["digest"] in named
            for id in manifest.get("memory_ids", ())
        }

    def resolve(self, name: str, model_name: str) -> str | None:
        """Digest of the version that a request's `model` means, `BASE` for the base, None for an unknown name."""
        if name in ("base", model_name):
            return BASE
        base, _, version = name.partition(":")
        if base != "base" or not version:
            return None
        digest, before = self.aliases().get(version, version), ""
        if digest == BASE:
            return BASE
        while not self.has(digest) and digest != before:  # an alias that moved while it was looked up
            digest, before = self.aliases().get(version, version), digest
        return digest if self.has(digest) else None

    def require(self, name: str, model_name: str) -> str:
        """As `resolve`, but raises `NotFound` listing all versions; only for callers who may see them."""
        digest = self.resolve(name, model_name)
        if digest is None:
            known = ", ".join(self.names(model_name))
            raise NotFound(
                f"model {name!r} does not exist; known: {known}", param="model", code="model_not_found"
            )
        return digest

    def names(self, model_name: str) -> dict[str, str]:
        """Every name that `resolve` accepts, with its digest."""
        aliases = {f"base:{alias}": digest for alias, digest in sorted(self.aliases().items())}
        versions = {f"base:{manifest['digest']}": manifest["digest"] for manifest in self.manifests()}
        return {"base": BASE, model_name: BASE, **aliases, **versions}

    def path(self, digest: str) -> Path:
        return self.folder / digest

    @contextlib.contextmanager
    def copied(self, digest: str) -> Iterator[Path]:
        """A temporary copy of the version's files, readable even if the version is retired. Raises `NotFound`, and
        `Conflict` if one is missing."""
        self.check(digest)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".load-") as folder:
            try:
                for name in FILES:
                    shutil.copyfile(self.folder / digest / name, Path(folder) / name)
            except FileNotFoundError:
                self.check(digest)
                self.check_whole(digest)
                raise
            yield Path(folder)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One change of the aliases at a time, whichever process makes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _copy(self, source: Path, digest: str, manifest: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".publish-"))
        try:
            for name in FILES:
                write_bytes(scratch / name, (source / name).read_bytes())
            write_json(scratch / "manifest.json", {**manifest, "digest": digest})
            scratch.rename(self.folder / digest)
        except OSError as error:
            if not self.has(digest):  # else another process published the same weights first
                raise Conflict(f"adapter {digest} could not be published: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        sync_folder(self.folder)


def adapter_digest(folder: Path) -> str:
    """Content digest of a PEFT folder, 16 hex digits."""
    total = hashlib.blake2b(digest_size=8)
    for name in FILES:
        total.update((folder / name).read_bytes())
    return total.hexdigest()
