"""Adapter versions: immutable LoRA artifacts on disk. No torch: the API reads names from here.

    <folder>/<digest>/adapter_model.safetensors, adapter_config.json, manifest.json
    <folder>/aliases.json                                {"latest": digest}

A version is named by the digest of its weights and configuration, so a name never comes to mean other weights.
Names in requests: `base`, `base:latest` (an alias), `base:<digest>`.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common.errors import Conflict, InvalidInput, NotFound
from common.files import read_json, sync_folder, write_bytes, write_json

BASE = ""
FILES = ("adapter_model.safetensors", "adapter_config.json")


class AdapterStore:
    """The versions on disk. Every change is one rename, so readers on other processes see it whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, source: Path, manifest: dict[str, Any], *, alias: str | None = "latest") -> str:
        """Copy a PEFT folder in as a version, then point `alias` at it. Returns its digest.

        Publishing the same weights again is harmless. Raises `InvalidInput` where files are missing.
        """
        missing = [name for name in FILES if not (source / name).is_file()]
        if missing:
            raise InvalidInput(f"adapter folder {source} lacks {', '.join(missing)}", param="adapter")
        digest = adapter_digest(source)
        if not self._has(digest):
            self._copy(source, digest, manifest)
        if alias is not None:
            self.set_alias(alias, digest)
        return digest

    def set_alias(self, alias: str, digest: str) -> None:
        if not self._has(digest):
            raise NotFound(f"adapter {digest!r} does not exist", param="adapter", code="adapter_not_found")
        write_json(self.folder / "aliases.json", {**self.aliases(), alias: digest})

    def aliases(self) -> dict[str, str]:
        path = self.folder / "aliases.json"
        return read_json(path) if path.is_file() else {}

    def manifest(self, digest: str) -> dict[str, Any]:
        if not self._has(digest):
            raise NotFound(f"adapter {digest!r} does not exist", param="adapter", code="adapter_not_found")
        return read_json(self.folder / digest / "manifest.json")

    def manifests(self) -> list[dict[str, Any]]:
        """Manifests of all versions, oldest first."""
        # Folders with a dot are copies in progress, which glob would match as well.
        folders = [path for path in self.folder.glob("*/manifest.json") if path.parent.name.isalnum()]
        found = [read_json(path) for path in folders]
        return sorted(found, key=lambda manifest: (manifest.get("created", 0.0), manifest["digest"]))

    def holding(self, namespace: str, memory_ids: set[str]) -> list[str]:
        """Versions that were trained on any of these memories: what an erasure has to name."""
        return [
            manifest["digest"]
            for manifest in self.manifests()
            if manifest.get("namespace") == namespace and memory_ids & set(manifest.get("memory_ids", ()))
        ]

    def resolve(self, name: str, model_name: str) -> str | None:
        """Digest of the version that a request's `model` means, `BASE` for the base, None for an unknown name."""
        if name in ("base", model_name):
            return BASE
        base, _, version = name.partition(":")
        digest = self.aliases().get(version, version)
        return digest if base == "base" and version and self._has(digest) else None

    def require(self, name: str, model_name: str) -> str:
        """As `resolve`, for those who may see every version: raises `NotFound` naming them."""
        digest = self.resolve(name, model_name)
        if digest is None:
            known = ", ".join(self.names(model_name))
            raise NotFound(
                f"model {name!r} does not exist; known: {known}", param="model", code="model_not_found"
            )
        return digest

    def names(self, model_name: str) -> dict[str, str]:
        """Every name that `resolve` knows, with its digest."""
        aliases = {f"base:{alias}": digest for alias, digest in sorted(self.aliases().items())}
        versions = {f"base:{manifest['digest']}": manifest["digest"] for manifest in self.manifests()}
        return {"base": BASE, model_name: BASE, **aliases, **versions}

    def path(self, digest: str) -> Path:
        return self.folder / digest

    def _has(self, digest: str) -> bool:
        return digest.isalnum() and (self.folder / digest / "manifest.json").is_file()

    def _copy(self, source: Path, digest: str, manifest: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".publish-"))
        try:
            for name in FILES:
                write_bytes(scratch / name, (source / name).read_bytes())
            write_json(scratch / "manifest.json", {**manifest, "digest": digest})
            scratch.rename(self.folder / digest)
        except OSError as error:
            if not self._has(digest):  # else another process published the same weights first
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
