"""The tokenizer of a model directory: its own file, or that of the language model it stands on."""

from __future__ import annotations

from pathlib import Path

from agent.model.bases import find_base
from agent.model.configuration import VLMFO1Config
from agent.tokenizer import PromptTokenizer, with_control_tokens


def model_tokenizer(directory: Path, config: VLMFO1Config) -> PromptTokenizer:
    """The folder's tokenizer; without one its base's, with the control tokens it lacks appended.

    Ids that the base had stay, and new ones follow in the order of `CONTROL_TOKENS`, so that they
    are the rows of the model's new embeddings.

    Raises:
        CheckpointMismatch: files are missing or damaged, or control tokens are lacking.
    """
    if config.base and not PromptTokenizer.is_in(directory):
        return with_control_tokens(find_base(config.base, directory).tokenizer())
    return PromptTokenizer.from_directory(directory)
