"""What a language model still knows after it learned to point: text, choices and chat.

Before is the base that the model stands on, after is the model, asked the same. Perplexity is of
a piece of English prose, a choice is right where the right ending is the likeliest, and what both
answer to questions in words is there to be read. Knows no pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from agent.generation import LanguageStage
from agent.model.bases import find_base
from agent.model.checkpoint import load_model
from agent.model.configuration import VLMFO1Config
from agent.model.language_model import LanguageModel
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.model_tokenizer import model_tokenizer
from agent.prompts import Task
from agent.tokenizer import PromptTokenizer
from groundstream.errors import SettingsError

KNOWLEDGE = Path(__file__).parent / "general_knowledge.yaml"
_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Knowledge:
    """What is asked."""

    text: str
    choices: tuple[tuple[str, tuple[str, ...]], ...]
    """A beginning and its endings, the right one first."""
    questions: tuple[str, ...]
    yes_no: tuple[tuple[str, bool], ...] = ()
    """Questions and whether the answer is yes."""

    @classmethod
    def read(cls, path: Path = KNOWLEDGE) -> Knowledge:
        """A YAML file with `text`, `choices` and `questions`, and with `yes_no` or without.

        Raises:
            SettingsError: it cannot be read so.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
            choices = tuple((str(start), tuple(map(str, ends))) for start, ends in raw["choices"])
            yes_no = tuple((str(text), bool(right)) for text, right in raw.get("yes_no", ()))
            return cls(str(raw["text"]), choices, tuple(map(str, raw["questions"])), yes_no)
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{path} is no YAML with text, choices and questions ({error})"
            ) from error


@dataclass(frozen=True)
class Memory:
    """What one model knows."""

    perplexity: float
    """Of the text, per token."""
    choices_right: float
    """Share of the choices."""
    yes_no_right: float
    """Share of the questions with yes or no, the likelier of the two words counted."""
    answers: tuple[str, ...]
    """To the questions."""


def compare(model: str, knowledge: Knowledge | None = None) -> dict[str, Memory]:
    """`before`, the base as its authors published it, and `after`, the model, in float32.

    Raises:
        SettingsError: the model stands on no base.
        CheckpointMismatch: files are missing or do not fit.
    """
    asked = Knowledge.read() if knowledge is None else knowledge
    directory = find_model(model).path
    loaded = load_model(directory, parts=frozenset({Part.LANGUAGE}))
    if not loaded.config.base:
        raise SettingsError(f"{model} stands on no other model, so nothing can be forgotten")
    assert loaded.language_model is not None
    tokenizer = model_tokenizer(directory, loaded.config)
    after = _memory(loaded, tokenizer, asked)
    base = find_base(loaded.config.base, directory)
    loaded.language_model = _Base(loaded.config, base.weights(torch.float32, lambda name: True))
    return {"before": _memory(loaded, tokenizer, asked), "after": after}


class _Base(LanguageModel):
    """The base as it was published, in the model's vocabulary: it gives new tokens no chance."""

    def __init__(self, config: VLMFO1Config, weights: dict[str, Tensor]) -> None:
        """
        Args:
            config: of the model that stands on the base.
            weights: the base's own, by our parameter names.
        """
        super().__init__(
            config.language_family.decoder,
            config.text,
            tie_word_embeddings=config.tie_word_embeddings,
        )
        for name, held in self.state_dict().items():
            value = weights[f"language_model.{name}"]
            held[: len(value)] = value
        self._num_known = len(weights["language_model.model.embed_tokens.weight"])
        self.eval()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., vocabulary), minus infinity for tokens that the base lacks."""
        logits = super().logits(hidden)
        logits[..., self._num_known :] = -torch.inf
        return logits


def _memory(model: VLMFO1, tokenizer: PromptTokenizer, asked: Knowledge) -> Memory:
    language = model.language_model
    assert language is not None
    # An engine, once made, puts its own attention into the layers; whole texts need the plain one.
    language.model.set_attn_implementation("sdpa")
    perplexity = _losses(language, torch.tensor(tokenizer.encode(asked.text))).mean().exp()
    right = [
        min(range(len(ends)), key=lambda k: _surprise(language, tokenizer, start, ends[k])) == 0
        for start, ends in asked.choices
    ]
    told = [
        _surprise(language, tokenizer, start, " Yes") < _surprise(language, tokenizer, start, " No")
        for start in (f"Question: {text}\nAnswer:" for text, _ in asked.yes_no)
    ]
    known = sum(said is is_yes for said, (_, is_yes) in zip(told, asked.yes_no, strict=True))
    stage = LanguageStage(model, tokenizer)
    answers = tuple(
        stage.answer(None, replace(Task.chat(question), max_new_tokens=_ANSWER_TOKENS)).text
        for question in asked.questions
    )
    stage.close()
    return Memory(float(perplexity), sum(right) / len(right), known / max(1, len(told)), answers)


def _surprise(language: LanguageModel, tokenizer: PromptTokenizer, start: str, end: str) -> float:
    """Mean negative log-probability of an ending's tokens."""
    first, whole = tokenizer.encode(start), tokenizer.encode(start + end)
    return float(_losses(language, torch.tensor(whole))[len(first) - 1 :].mean())


@torch.inference_mode()
def _losses(language: LanguageModel, ids: Tensor) -> Tensor:
    """(length - 1,) negative log-probability of each token but the first."""
    positions = torch.arange(len(ids)).expand(language.num_axes, 1, -1)
    hidden = language(language.embed(ids)[None], positions)[0]
    logits = language.logits(hidden[:-1]).float()
    return nn.functional.cross_entropy(logits, ids[1:], reduction="none")
