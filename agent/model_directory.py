"""Where a model's files are and what they are called: names to folders, folders to digests.

Reads files, never tensors, so the ingress can describe a model without loading torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CheckpointMismatch

NANO = "nano"
_WEIGHTS = Path(__file__).parent / "weights" / "nano"
_REQUIRED = ("config.json",)
_CHUNK = 1 << 20
_DIGESTED = frozenset({".json", ".safetensors", ".pth", ".txt"})


@dataclass(frozen=True)
class ModelDirectory:
    """A model on disk: `config.json`, safetensors, tokenizer files."""

    path: Path
    name: str
    digest: str
    """BLAKE2b-256 over configuration and weights; part of every cache key."""

    def config(self) -> dict[str, object]:
        """The parsed `config.json`."""
        loaded: dict[str, object] = json.loads((self.path / "config.json").read_text())
        return loaded

    @property
    def least_confidence(self) -> float:
        """Boxes that this model names with less are no detections; what its card recommends."""
        extra = self.config().get("groundstream")
        return float(extra.get("least_confidence", 0.0)) if isinstance(extra, dict) else 0.0

    @property
    def one_per_object(self) -> bool:
        """Whether overlapping boxes of one answer are one object."""
        extra = self.config().get("groundstream")
        return bool(extra.get("one_per_object", False)) if isinstance(extra, dict) else False


def find_model(model: str = NANO, *, proposal_network: str | None = None) -> ModelDirectory:
    """The directory of `model`: the embedded nano model or a folder.

    Args:
        model: name or folder.
        proposal_network: what is used instead of the model's own network; part of the digest.

    Raises:
        CheckpointMismatch: no such folder, or a required file is missing.
    """
    path = _path(model)
    for name in _REQUIRED:
        if not (path / name).is_file():
            raise CheckpointMismatch(
                f"{path / name} does not exist; --model takes '{NANO}' or a folder that holds a "
                "VLM-FO1 checkpoint"
            )
    name = model if model == NANO else path.name
    return ModelDirectory(path, name, _digest(path, proposal_network))


def has_auxiliary_encoder(model: str) -> bool:
    """Whether a stage of its own looks at the boxes of `model` a second time.

    If none does, the proposal network describes them. Says yes of what cannot be read: whoever
    loads it will say why.
    """
    try:
        config = json.loads((_path(model) / "config.json").read_text())
        return bool(config["groundstream"]["auxiliary"] != "proposal")
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _path(model: str) -> Path:
    return _WEIGHTS if model == NANO else Path(model)


def _digest(path: Path, proposal_network: str | None) -> str:
    digest = hashlib.blake2b(digest_size=32)
    named = proposal_network is not None
    elsewhere = [] if named else _elsewhere(path, "proposal", "network")
    if proposal_network is not None:
        digest.update(proposal_network.encode())
        elsewhere = [Path(proposal_network)] if Path(proposal_network).is_dir() else []
    for folder in (path, *elsewhere, *_elsewhere(path, "base")):
        for file in sorted(folder.glob("**/*")):
            if file.is_file() and file.suffix in _DIGESTED:
                digest.update(file.relative_to(folder).as_posix().encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
    return digest.hexdigest()


def _elsewhere(path: Path, *keys: str) -> list[Path]:
    """The folder that the model's configuration names under some keys, if it is not inside it."""
    try:
        value = json.loads((path / "config.json").read_text()).get("groundstream", {})
    except ValueError:
        return []  # whoever parses the file will say so
    for key in keys:
        value = value.get(key, {})
    if not isinstance(value, str) or not value:
        return []
    # Joined to a folder, an absolute path stays what it is.
    folder = path / value if (path / value).is_dir() else Path(value)
    inside = folder.resolve().is_relative_to(path.resolve())
    return [folder] if folder.is_dir() and not inside else []
