"""Where a model's files are and what they are called: names to folders, folders to digests.

Reads files, never tensors, so the ingress can describe a model without loading torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.answer_rules import AnswerRules
from agent.base_package import PACKAGES
from agent.errors import CheckpointMismatch

EMBEDDED = ("pocket",)
"""Models that the package brings, by name; the first is the default everywhere."""
DEFAULT_MODEL = EMBEDDED[0]
_WEIGHTS = Path(__file__).parent / "weights"
_CONFIG = "config.json"
_CHUNK = 1 << 20
_DIGESTED = frozenset({".json", ".safetensors", ".pth", ".txt"})


@dataclass(frozen=True)
class ModelDirectory:
    """A model on disk: `config.json`, safetensors, tokenizer files."""

    path: Path
    name: str
    digest: str
    """BLAKE2b-256 over configuration and weights; part of every cache key. Of a language model that
    others bring, name, size and version stand for its contents."""

    def config(self) -> dict[str, object]:
        """The parsed `config.json`."""
        loaded: dict[str, object] = json.loads((self.path / _CONFIG).read_text())
        return loaded

    @property
    def rules(self) -> AnswerRules:
        """How it is asked, and how its answers are read."""
        return AnswerRules.read(self._ours())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the kinds of questions it was trained for; empty: all there are."""
        return tuple(self._ours().get("tasks", ()))

    def _ours(self) -> dict[str, Any]:
        """What only our configurations state."""
        return _section(self.config())


def find_model(
    model: str = DEFAULT_MODEL, *, proposal_network: str | None = None
) -> ModelDirectory:
    """The directory of `model`: an embedded model or a folder.

    Args:
        model: name or folder.
        proposal_network: what is used instead of the model's own network; part of the digest.

    Raises:
        CheckpointMismatch: no such folder, or a required file is missing.
    """
    path = _path(model)
    if not (path / _CONFIG).is_file():
        raise CheckpointMismatch(
            f"{path / _CONFIG} does not exist; --model takes '{DEFAULT_MODEL}' or a folder that "
            "holds a VLM-FO1 checkpoint"
        )
    name = model if model in EMBEDDED else path.name
    return ModelDirectory(path, name, _digest(path, proposal_network))


def has_auxiliary_encoder(model: str) -> bool:
    """Whether a stage of its own looks at the boxes of `model` a second time.

    If none does, the proposal network describes them. Says yes of what cannot be read: whoever
    loads it will say why.
    """
    try:
        config = json.loads((_path(model) / _CONFIG).read_text())
        return bool(config["groundstream"]["auxiliary"] != "proposal")
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _path(model: str) -> Path:
    return _WEIGHTS / model if model in EMBEDDED else Path(model)


def _digest(path: Path, proposal_network: str | None) -> str:
    digest = hashlib.blake2b(digest_size=32)
    section = _read_section(path)
    elsewhere = _elsewhere(path, section.get("base"))
    if proposal_network is None:
        elsewhere += _elsewhere(path, section.get("proposal", {}).get("network"))
    else:
        digest.update(proposal_network.encode())
        elsewhere += [given] if (given := Path(proposal_network)).exists() else []
    for place in (path, *elsewhere):
        folder = place.parent if place.is_file() else place
        for file in [place] if place.is_file() else sorted(place.glob("**/*")):
            if file.is_file() and file.suffix in _DIGESTED:
                digest.update(file.relative_to(folder).as_posix().encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
    # Of a base that is unknown, whoever loads the model will say so.
    if (package := PACKAGES.get(section.get("base", ""))) is not None:
        digest.update(package.identity().encode())
    return digest.hexdigest()


def _elsewhere(path: Path, name: object) -> list[Path]:
    """The folder or file that a model names, if there is one and it is not inside the model's."""
    if not isinstance(name, str) or not name:
        return []
    # Joined to a folder, an absolute path stays what it is.
    place = path / name if (path / name).exists() else Path(name)
    inside = place.resolve().is_relative_to(path.resolve())
    return [place] if place.exists() and not inside else []


def _read_section(path: Path) -> dict[str, Any]:
    try:
        return _section(json.loads((path / _CONFIG).read_text()))
    except ValueError:
        return {}  # whoever parses the file will say so


def _section(config: dict[str, object]) -> dict[str, Any]:
    section = config.get("groundstream")
    return section if isinstance(section, dict) else {}
