"""SmolLM2 as it learns to point: new tokens, the connector, and low-rank changes to train.

Knows no scenes and no questions.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from agent.beliefs import imagenet_shares
from agent.model.low_rank import adapt, adapter_state, load_adapter
from agent.model.name_mixture import NameMixture
from agent.model.smollm2 import smollm2_tokenizer
from agent.tokenizer import CONTROL_TOKENS
from agent.training.base_model import load_smollm2
from agent.vocabulary import COLOURS, Vocabulary

NUM_KNOWN = 49_152
NEW_TOKENS = tuple(token for token in CONTROL_TOKENS if not token.startswith(("<|endof", "<|im_")))

_ROUND_ROWS = 64


class PointingModel(nn.Module):
    """SmolLM2 with new tokens, the connector, and low-rank changes."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.language = load_smollm2(dtype=torch.bfloat16).model
        self.tokenizer: Tokenizer = smollm2_tokenizer(NEW_TOKENS)
        known = self.language.embed_tokens.weight.detach().float()
        self.known = known
        hidden = known.shape[1]
        self.adapted = adapt(self.language, rank=rank)
        self.connector = NameMixture(hidden)
        # New tokens differ from each other as words do; they share one trained offset, and each
        # moves slowly: fast ones learn the form of an answer and lose the choice.
        spread = known.std(0)
        self.token_base: Tensor
        noise = torch.randn(len(NEW_TOKENS), hidden, generator=torch.Generator().manual_seed(7))
        self.register_buffer("token_base", known.mean(0) + noise * spread)
        self.token_offset = nn.Parameter(torch.zeros(hidden))
        self.token_delta = nn.Parameter(torch.zeros(len(NEW_TOKENS), hidden))

    def name_tables(self, words: Vocabulary) -> None:
        """Start the connector as names."""
        things = [*words.coco, *words.imagenet]
        with torch.no_grad():
            self.connector.imagenet_share.copy_(imagenet_shares(words))
            self.connector.own_names.copy_(torch.stack([self._named(t.names[0]) for t in things]))
            self.connector.everyday_names.copy_(
                torch.stack([self._named(t.everyday) for t in things])
            )
            doubtful = [self._named(word) for word in ("nothing", "unknown")]
            self.connector.nothing.copy_(torch.stack(doubtful))
            self.connector.appearance.weight.zero_()
            colours = torch.stack([self._named(colour) for colour in COLOURS])
            self.connector.appearance.weight[:, : len(COLOURS)] = 0.35 * colours.T

    def _named(self, name: str) -> Tensor:
        ids = self.tokenizer.encode(f" {name}").ids
        return self.known[ids].mean(0)

    def new_rows(self) -> Tensor:
        """(new tokens, hidden)."""
        rows: Tensor = self.token_base + self.token_offset + self.token_delta
        return rows

    def embed(self, ids: Tensor) -> Tensor:
        """(length,) ids to (length, hidden) float32."""
        known = self.known[ids.clamp(max=NUM_KNOWN - 1)]
        rows = self.new_rows()[(ids - NUM_KNOWN).clamp(min=0)]
        return torch.where((ids >= NUM_KNOWN)[:, None], rows, known)

    def read(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """(length, hidden) states after the final norm; without a mask each row sees those before.

        Rows are added up to a round number, since oneDNN compiles its kernels anew for every number
        of rows.
        """
        dtype, length = self.language.embed_tokens.weight.dtype, len(positions)
        added = -length % _ROUND_ROWS
        if mask is not None:
            mask = nn.functional.pad(mask, (0, added, 0, added))
            mask.diagonal()[length:] = True
        output = self.language(
            inputs_embeds=nn.functional.pad(embeddings, (0, 0, 0, added))[None].to(dtype),
            position_ids=nn.functional.pad(positions, (0, added))[None],
            attention_mask=None if mask is None else mask[None, None],
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0, :length]
        return hidden

    def set_adapted(self, enabled: bool) -> None:
        """Use the low-rank changes, or be the model that was."""
        for layer in self.adapted:
            layer.enabled = enabled

    def trained_state(self) -> dict[str, Tensor]:
        """What training made: the adapter, the new tokens' rows and the connector."""
        return {
            **{f"model.{name}": value for name, value in adapter_state(self.language).items()},
            "new_tokens.weight": self.new_rows().detach(),
            **{f"connector.{k}": v.detach() for k, v in self.connector.state_dict().items()},
        }

    def take_over(self, learned: dict[str, Tensor]) -> None:
        """Go on from what `trained_state` gave, of whatever type it was stored in."""
        floats = {key: value.float() for key, value in learned.items()}
        load_adapter(self.language, _within("model.", floats))
        self.connector.load_state_dict(_within("connector.", floats))
        rows = floats["new_tokens.weight"]
        self.token_delta.data.copy_(rows - self.token_base - self.token_offset)


def _within(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
