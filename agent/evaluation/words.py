"""Does it matter how a thing is asked for? Spellings, synonyms, wider words, many labels at once.

Every name of a picture is asked plainly, in other spellings and by other words; right is what the
plain name was answered with: the same regions. As many questions, of the same kinds, are about what
is absent. Then all of a picture's names are asked in one question, with names that are absent, and
one by one. Knows no wire and no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.detections import Detections, FloatArray
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import arguable_names, clear_cases, match_count
from agent.evaluation.names import is_known, synonyms, true_names, wider_words
from agent.evaluation.tally import Estimate, Tally, interval, resampling_weights
from agent.evaluation.text_match import words_of
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Pipeline
from agent.plain_nouns import plural, with_article
from agent.prompts import Task
from agent.training.scene_questions import held_out

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plural": plural,
    "article": with_article,
    "capital": str.capitalize,
    "full_stop": lambda name: f"{name}.",
}
"""How a name may be written, by kind."""

OTHER_WORDS = ("synonym", "wider")
KINDS = (*SPELLINGS, *OTHER_WORDS)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Asked:
    """One way to ask for something."""

    kind: str
    text: str
    names: tuple[str, ...] = ()
    """The plain names of what it means in this picture; none if it is absent."""


@dataclass(frozen=True)
class PictureQuestions:
    """What one picture is asked."""

    image: CocoImage
    present: tuple[str, ...]
    """Plain names."""
    absent: tuple[str, ...]
    """Plain names that are asked beside them, all at once and one by one."""
    asked: tuple[Asked, ...]

    @property
    def plain(self) -> tuple[str, ...]:
        return self.present + self.absent

    def tasks(self) -> tuple[Task, ...]:
        """Plain names one by one, other ways of asking one by one, plain names in one question."""
        return (
            *(Task.detect(name) for name in self.plain),
            *(Task.detect(asked.text) for asked in self.asked),
            Task.detect(*self.plain),
        )


@dataclass
class WordScores:
    """Shares by picture."""

    tally: Tally = field(default_factory=Tally)
    num_present: int = 0
    """Other ways of asking for what is there."""
    num_absent: int = 0

    def figures(self) -> dict[str, float | Estimate]:
        """Everything, for a report; the ratio of the two F1s with an interval of its own."""
        shares = self.tally.estimates(num_resamples=_RESAMPLES)
        ratio = _ratio(self.tally, "f1_together", "f1_one_by_one")
        return {
            "asked_present": self.num_present,
            "asked_absent": self.num_absent,
            **shares,
            **({} if ratio is None else {"together_to_one_by_one": ratio}),
        }


def questions(data: CocoFolder, *, labels: int = 40, seed: int = 0) -> list[PictureQuestions]:
    """What each picture is asked.

    Args:
        data: annotated pictures.
        labels: most names in one question, absent ones included.
        seed: chooses absent names.
    """
    dice = random.Random(seed)
    pictures = [image for image in data.images if image.category]
    present = {image.image_id: _present_ways(image, data) for image in pictures}
    absent = {image.image_id: _absent_ways(image, data, dice) for image in pictures}
    chosen = _as_many(present, absent, dice)
    found = []
    for image in pictures:
        names = _names(image, data)[:labels]
        others = _absent_names(image, data, dice)[: labels - len(names)]
        asked = (*present[image.image_id], *chosen[image.image_id])
        asked = tuple(one for one in asked if set(one.names) <= set(names))
        found.append(PictureQuestions(image, names, others, asked))
    return found


async def evaluate_words(
    pipeline: Pipeline, data: CocoFolder, asked: Sequence[PictureQuestions]
) -> WordScores:
    """Ask every picture its questions and compare."""
    scores, of_picture = WordScores(), {str(one.image.image_id): one for one in asked}
    pictures = [Picture(name, one.image.path, one.tasks()) for name, one in of_picture.items()]
    async for picture, grounding in ask_all(pipeline, pictures, title="words"):
        _count(scores, of_picture[picture.name], grounding.answers, data)
    return scores


def _count(
    scores: WordScores, asked: PictureQuestions, answers: Sequence[Answer], data: CocoFolder
) -> None:
    name, tally = str(asked.image.image_id), scores.tally
    plain = dict(zip(asked.plain, answers, strict=False))
    others = answers[len(asked.plain) : -1]
    for one, answer in zip(asked.asked, others, strict=True):
        regions = frozenset(answer.detections.region.tolist())
        if not one.names:
            scores.num_absent += 1
            for figure in ("false_boxes", f"false_boxes_{one.kind}"):
                tally.add(name, figure, bool(regions))
            continue
        scores.num_present += 1
        expected = frozenset[int]().union(
            *(plain[word].detections.region.tolist() for word in one.names)
        )
        group = "same_spelled" if one.kind in SPELLINGS else "same_other_words"
        for figure in (group, f"same_{one.kind}"):
            tally.add(name, figure, regions == expected)
            if expected:
                # Nothing found twice is no great agreement.
                tally.add(name, f"{figure}_found", regions == expected)
        if one.kind == "synonym":
            truth = _truth(asked.image, one.names[0], data)
            _add_f1(tally, name, _asked_in_training(one.text), answer.detections, truth)
    for word in asked.present:
        truth = _truth(asked.image, word, data)
        for figure in ("f1", _asked_in_training(word)):
            _add_f1(tally, name, figure, plain[word].detections, truth)
    together = answers[-1]
    tally.add(name, "together_truncated", together.status is AnswerStatus.TRUNCATED)
    tally.add(name, "labels_at_once", len(asked.plain))
    for word in asked.plain:
        truth = _truth(asked.image, word, data)
        _add_f1(tally, name, "f1_one_by_one", plain[word].detections, truth)
        _add_f1(tally, name, "f1_together", _labelled(together.detections, word), truth)


def _asked_in_training(word: str) -> str:
    """The F1 a word counts for: asked in training, held out of it, or no word of it at all."""
    if not is_known(word):
        return "f1_unknown_word"
    return "f1_held_out_word" if held_out(word) else "f1_trained_word"


def _add_f1(
    tally: Tally,
    image: str,
    figure: str,
    found: Detections,
    truth: tuple[FloatArray, FloatArray],
) -> None:
    """Count an answer's boxes against the true ones; those that may be called so are left out."""
    boxes, others = truth
    clear = clear_cases(found.xyxy, boxes, others)
    right = match_count(found.xyxy[clear], found.confidence[clear], boxes)
    tally.add(image, figure, 2 * right, int(clear.sum()) + len(boxes))


def _truth(image: CocoImage, name: str, data: CocoFolder) -> tuple[FloatArray, FloatArray]:
    """Boxes of a name, and boxes of other names that may be called so, too."""
    own = np.array([data.categories[category] == name for category in image.category], dtype=bool)
    also = np.array([name in image.also_of(k) for k in range(len(own))], dtype=bool)
    return image.xyxy[own], image.xyxy[also & ~own]


def _labelled(found: Detections, word: str) -> Detections:
    """The boxes of one of several labels."""
    wanted = words_of(word)
    rows = [k for k, label in enumerate(found.label) if words_of(label) == wanted]
    return Detections(
        found.xyxy[rows],
        found.confidence[rows],
        tuple(found.label[k] for k in rows),
        found.region[rows],
    )


def _names(image: CocoImage, data: CocoFolder) -> tuple[str, ...]:
    return tuple(sorted({data.categories[category] for category in image.category}))


def _present_ways(image: CocoImage, data: CocoFolder) -> list[Asked]:
    """Every spelling of every name, and the vocabulary's other words for it."""
    names = _names(image, data)
    asked = [one for name in names for one in _spelled(name, (name,))]
    words = {
        word: kind
        for name in names
        for kind, of_kind in (("wider", wider_words(name)), ("synonym", synonyms(name)))
        for word in sorted(of_kind)
    }
    for word, kind in words.items():
        meant = _meant(word, names, image, data)
        if meant and word not in names and (kind == "wider" or len(meant) == 1):
            asked.append(Asked(kind, word, meant))
    return asked


def _meant(word: str, names: Sequence[str], image: CocoImage, data: CocoFolder) -> tuple[str, ...]:
    """The names whose things a word is true of; none where it is true of some of them only."""
    meant = []
    for name in names:
        things = [k for k, c in enumerate(image.category) if data.categories[c] == name]
        if image.also:
            # What the annotations list was seen by somebody; the vocabulary is not asked.
            true = sum(word in image.also_of(k) for k in things)
        else:
            true = len(things) * (word in synonyms(name) | wider_words(name))
        if 0 < true < len(things):
            return ()
        if true:
            meant.append(name)
    return tuple(meant)


def _absent_ways(image: CocoImage, data: CocoFolder, dice: random.Random) -> list[Asked]:
    """Every way of asking for every absent name, in random order."""
    arguable = arguable_names(image, data)
    found: dict[str, Asked] = {}
    for name in image.absent or _absent_names(image, data, dice):
        ways = _spelled(name, ())
        ways += [Asked("synonym", word) for word in sorted(synonyms(name))]
        ways += [Asked("wider", word) for word in sorted(wider_words(name))]
        found |= {one.text: one for one in ways if one.text not in arguable}
    ways = list(found.values())
    dice.shuffle(ways)
    return ways


def _absent_names(image: CocoImage, data: CocoFolder, dice: random.Random) -> tuple[str, ...]:
    """What the picture's own list says, then the file's other names in random order."""
    arguable = arguable_names(image, data)
    crowds = {data.categories[category] for category in image.crowds}
    others = sorted(set(data.categories.values()) - arguable - crowds - set(image.absent))
    others = [name for name in others if not true_names(name) & set(_names(image, data))]
    dice.shuffle(others)
    return (*image.absent, *others)


def _spelled(name: str, meant: tuple[str, ...]) -> list[Asked]:
    texts = {kind: spell(name) for kind, spell in SPELLINGS.items()}
    return [Asked(kind, text, meant) for kind, text in texts.items() if text != name]


def _as_many(
    present: dict[int, list[Asked]], absent: dict[int, list[Asked]], dice: random.Random
) -> dict[int, list[Asked]]:
    """Of the ways of asking for absent things as many as of the others, kind by kind; where a kind
    has too few, more of the other kinds."""
    pool = [(image, one) for image, ways in absent.items() for one in ways]
    dice.shuffle(pool)
    wanted = [one.kind for ways in present.values() for one in ways]
    chosen: list[tuple[int, Asked]] = []
    for kind in KINDS:
        chosen += [entry for entry in pool if entry[1].kind == kind][: wanted.count(kind)]
    taken = set(chosen)
    rest = [entry for entry in pool if entry not in taken]
    chosen += rest[: len(wanted) - len(chosen)]
    return {image: [one for at, one in chosen if at == image] for image in present}


def _ratio(tally: Tally, over: str, under: str) -> Estimate | None:
    """One share relative to another, drawn again together."""
    rows = list(tally.images.values())
    parts = np.array([[row.get(name, (0.0, 0.0)) for name in (over, under)] for row in rows])
    if not len(rows) or not parts[:, 1, 0].any():
        return None
    sums = np.tensordot(resampling_weights(len(rows), _RESAMPLES, 0), parts, axes=1)
    sums = sums[sums[:, 1, 0] > 0]
    drawn = (sums[:, 0, 0] / sums[:, 0, 1]) / (sums[:, 1, 0] / sums[:, 1, 1])
    whole = parts.sum(axis=0)
    value = (whole[0, 0] / whole[0, 1]) / (whole[1, 0] / whole[1, 1])
    return interval(value, drawn, count=len(rows))


def num_present_ways(asked: Iterable[PictureQuestions]) -> int:
    """Other ways of asking for what is there, in all pictures."""
    return sum(bool(one.names) for picture in asked for one in picture.asked)
