"""What the untouched language model answers to everyday questions: text that training rehearses.

A model that learns to point keeps what it knew if it is held to its own former answers; they cost
nothing but the writing. `write` asks the base a few hundred questions and keeps question and
answer in its own form of conversation, one file each. `read` gives them back with answers of a
sentence or two, to be asked beside pictures.

    groundstream train own-answers --output DIR
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from agent.model.family import LLAMA
from agent.model.smollm2 import smollm2_tokenizer
from agent.prompts import SYSTEM_PROMPT
from agent.training.base_model import load_smollm2
from agent.vocabulary import vocabulary
from groundstream.errors import SettingsError

_ABOUT = (
    "What is {a}?", "Tell me about {a}.", "Write one sentence about {a}.",
    "Describe {a} to a child.",
    "What is {a} used for?", "Where would I find {a}?", "Write a short story about {a}.",
    "Name three facts about {a}.", "How big is {a}?", "What does {a} look like?",
)  # fmt: skip
_GENERAL = Path(__file__).parent / "everyday_questions.txt"
_MAX_TOKENS = 96
_TOGETHER = 40
_MOST_KEPT = 200
"""Characters of an answer that is learned beside a picture: a sentence or two."""


def questions(count: int, seed: int) -> list[str]:
    """Everyday questions: those of a file, then some about things of the vocabulary."""
    dice, words = random.Random(seed), vocabulary()
    things = sorted({thing.everyday for thing in (*words.coco, *words.imagenet)})
    asked = _GENERAL.read_text(encoding="utf-8").splitlines()
    while len(asked) < count:
        asked.append(dice.choice(_ABOUT).replace("{a}", f"a {dice.choice(things)}"))
    return asked[:count]


def write(output: Path, *, count: int, seed: int) -> None:
    """Ask the base and write one file for each question."""
    output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_smollm2(dtype=torch.bfloat16), smollm2_tokenizer()
    words, end = LLAMA.prompt, int(tokenizer.token_to_id(LLAMA.prompt.end_of_turn) or 0)
    system = words.system_turn.replace("{}", SYSTEM_PROMPT)
    ends = words.end_of_turn + words.between_turns
    prompts = [
        f"{system}{words.user}{text}{ends}{words.assistant}" for text in questions(count, seed)
    ]
    for start in range(0, count, _TOGETHER):
        batch = prompts[start : start + _TOGETHER]
        for number, (prompt, said) in enumerate(
            zip(batch, _answers(model, tokenizer, batch, end), strict=True), start
        ):
            (output / f"answer_{number:04}.txt").write_text(prompt + said, encoding="utf-8")


def read(folder: Path) -> list[tuple[str, str]]:
    """Questions with the start of their answers, in whole sentences, as `write` kept them.

    Answers that go round are left out: the base rambles in French or Italian then, and a model
    that learns them by heart answers so where the base did not.

    Raises:
        SettingsError: the folder holds no answers.
    """
    words = LLAMA.prompt
    found = []
    for path in sorted(folder.glob("answer_*.txt")):
        _, _, turns = path.read_text(encoding="utf-8").partition(words.user)
        question, _, answer = turns.partition(words.end_of_turn)
        answer = answer.partition(words.assistant)[2].removesuffix(words.end_of_turn)
        ends = [match.end() for match in _SENTENCE_END.finditer(answer[:_MOST_KEPT])]
        if ends and not _goes_round(answer):
            found.append((question, answer[: ends[-1]]))
    if not found:
        raise SettingsError(f"{folder} holds no answers: write some with `train own-answers`")
    return found


def _goes_round(text: str) -> bool:
    """Whether some five words follow one another twice."""
    said = text.lower().split()
    runs = [tuple(said[k : k + _ROUND]) for k in range(len(said) - _ROUND + 1)]
    return len(set(runs)) < len(runs)


_ROUND = 5
_SENTENCE_END = re.compile(r"[^\d\s][.!?](?=\s|$)")


@torch.inference_mode()
def _answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str], end: int
) -> list[str]:
    """Greedy answers, the end token included where it was reached."""
    ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    longest = max(map(len, ids))
    written = model.generate(  # type: ignore[misc]
        torch.tensor([[end] * (longest - len(row)) + row for row in ids]),
        attention_mask=torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in ids]),
        max_new_tokens=_MAX_TOKENS,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    answers = []
    for row in written[:, longest:].tolist():
        kept = row[: row.index(end) + 1] if end in row else row
        answers.append(str(tokenizer.decode(kept, skip_special_tokens=False)))
    return answers
