"""Text to token ids and back: byte-level BPE with the model's control tokens.

What a user types is refused if it holds a control token: by its looks in `agent.prompts`, and by
its tokens here. Knows no prompt templates and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from agent.errors import CheckpointMismatch
from agent.prompts import MAX_REGIONS, region_token
from groundstream.checks import check_text
from groundstream.errors import InvalidQuery

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<ground>",
    "</ground>",
    "<objects>",
    "</objects>",
    "<think>",
    "</think>",
    *(region_token(index) for index in range(MAX_REGIONS)),
)
_FILE = "tokenizer.json"
_REQUIRED = (*CONTROL_TOKENS[1:9], *(region_token(index) for index in range(MAX_REGIONS)))
_SLOW_FILES = ("vocab.json", "merges.txt")


class PromptTokenizer:
    """A `tokenizers` pipeline with named control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [t for t in _REQUIRED if tokenizer.token_to_id(t) is None]
        if missing:
            raise CheckpointMismatch(f"the tokenizer lacks the control token {missing[0]!r}")
        self._tokenizer = tokenizer
        self.control_ids = frozenset(tokenizer.get_added_tokens_decoder())
        """Ids of all control tokens, a model's own included."""

    @classmethod
    def is_in(cls, directory: Path) -> bool:
        """Whether a folder holds any tokenizer files."""
        return any((directory / name).is_file() for name in (_FILE, *_SLOW_FILES))

    @classmethod
    def from_directory(cls, directory: Path) -> PromptTokenizer:
        """Read `tokenizer.json`, else the published `vocab.json`, `merges.txt` and added tokens.

        Raises:
            CheckpointMismatch: a file is missing or damaged, or control tokens are lacking.
        """
        path = directory / _FILE
        absent = [name for name in _SLOW_FILES if not (directory / name).is_file()]
        if not path.is_file() and absent:
            raise CheckpointMismatch(
                f"{directory} holds neither {_FILE} nor {absent[0]}; copy the model's tokenizer "
                f"files ({_FILE}, or {', '.join(_SLOW_FILES)} and added_tokens.json)"
            )
        try:
            if path.is_file():
                return cls(Tokenizer.from_file(str(path)))
            return cls(_published(directory))
        except CheckpointMismatch:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointMismatch(
                f"the tokenizer of {directory} cannot be read ({error}); download it again"
            ) from error

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(directory / _FILE))

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def control(self, token: str) -> int:
        """Id of a control token.

        Raises:
            CheckpointMismatch: the tokenizer lacks it.
        """
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointMismatch(f"the tokenizer lacks the control token {token!r}")
        return int(found)

    def region(self, index: int) -> int:
        """Id of `<regionN>`."""
        return self.control(region_token(index))

    def encode(self, text: str) -> list[int]:
        """Ids of text; control tokens in it count."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def check_words(self, words: str) -> None:
        """Refuse what somebody typed if any of it would become a control token of this model.

        `agent.prompts` refuses those of VLM-FO1 by their looks; another model may have more.

        Raises:
            InvalidQuery: it would, or UTF-8 cannot write it.
        """
        check_text(words, "the query")
        spoken = self.control_ids.intersection(self.encode(words))
        if spoken:
            token = self.decode([min(spoken)])
            raise InvalidQuery(f"the query contains the control token {token!r}; remove it")

    def pieces(self, token_ids: Iterable[int]) -> tuple[str, ...]:
        """Text of each token; a character whose bytes span tokens belongs to the last of them."""
        step = self.stepwise()
        return tuple(step(token_id) for token_id in token_ids)

    def stepwise(self) -> Callable[[int], str]:
        """A decoder that is fed one token after the other: the text that each completes."""
        stream = DecodeStream(skip_special_tokens=False)
        return lambda token_id: stream.step(self._tokenizer, token_id) or ""

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of several tokens (bytes of one character may span tokens)."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))


def with_control_tokens(tokenizer: Tokenizer) -> PromptTokenizer:
    """A family's tokenizer that also knows regions and the answer grammar.

    Tokens it lacks are appended, so that ids it had stay; the model must have rows for them.
    """
    known = tokenizer.get_vocab(with_added_tokens=True)
    lacking = [token for token in CONTROL_TOKENS if token not in known]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in lacking])
    return PromptTokenizer(tokenizer)


def _published(directory: Path) -> Tokenizer:
    """Qwen2's byte-level BPE from its slow files, with the added tokens of the checkpoint."""
    from transformers import Qwen2Tokenizer

    # A folder that does not say which transformers wrote it is taken for one of Mistral's, and
    # warned of; False says that it is not.
    published = Qwen2Tokenizer.from_pretrained(str(directory), fix_mistral_regex=False)
    backend: Tokenizer = published.backend_tokenizer
    return backend


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PromptTokenizer:
    """A byte-level BPE over `texts`, with the control tokens first."""
    tokenizer = Tokenizer(models.BPE())
    # Spaces stand alone, so that a word is the same tokens wherever it is written: a small model
    # need not learn that " dog" in a question is "dog" in an answer.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PromptTokenizer(tokenizer)
