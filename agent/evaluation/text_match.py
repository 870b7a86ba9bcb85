"""How close an answer in words is to the right one.

Semantic IoU and semantic similarity follow Osprey (CircleRadon/Osprey, osprey/eval/
lvis_paco_eval.py), whose protocol VLM-FO1 and others report on LVIS and PACO: IoU of the sets of
words, and the cosine of sentence embeddings (all-MiniLM-L6-v2). Knows no benchmark file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from agent.detections import FloatArray
from groundstream.errors import SourceError

TextEncoder = Callable[[Sequence[str]], FloatArray]
"""Texts to (n, width) vectors of length 1."""

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def same_words(answer: str, truth: str) -> bool:
    """Whether both say the same but for case, punctuation and spaces."""
    return words_of(answer) == words_of(truth)


def contains_words(answer: str, truth: str) -> bool:
    """Whether the words of `truth` stand together, in order, somewhere in the answer."""
    whole, part = words_of(answer), words_of(truth)
    return any(whole[k : k + len(part)] == part for k in range(len(whole) - len(part) + 1))


def category_words(text: str) -> str:
    """A category name or an answer as Osprey compares them: `bottle:cap` is "bottle cap"."""
    return " ".join(re.sub(r"[_:.,]", " ", text).casefold().split())


def semantic_iou(answer: str, truth: str) -> float:
    """Shared words over all words, both as `category_words`; 0 if neither says anything."""
    a, b = set(category_words(answer).split()), set(category_words(truth).split())
    return len(a & b) / len(a | b) if a | b else 0.0


def edit_similarity(answer: str, truth: str) -> float:
    """1 minus the edit distance over the longer text's length, in 0..1; case counts."""
    return float(Levenshtein.normalized_similarity(answer, truth))


def sentence_encoder(name: str) -> TextEncoder:
    """An encoder of sentence-transformers, by folder or hub name.

    Raises:
        SourceError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SourceError(
            "semantic similarity needs sentence-transformers (pip install sentence-transformers); "
            "without --encoder, exact matches and semantic IoU are still reported"
        ) from error
    model = SentenceTransformer(name)
    return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True))
