"""Composed sets, their formats, the suite and the studies, with answers taken from the truth."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.detections import Detections, Proposals, box_iou
from agent.evaluation.clutter_study import crowded_set, measure_clutter
from agent.evaluation.coco_folder import CocoImage
from agent.evaluation.cocotext import evaluate_cocotext, load_cocotext
from agent.evaluation.composed_sets import ComposedSet, evaluation_sets
from agent.evaluation.countbench import load_countbench
from agent.evaluation.counting import evaluate_counting
from agent.evaluation.ferret_bench import evaluate_ferret_bench, load_ferret_bench
from agent.evaluation.multiple_choice import evaluate_multiple_choice, load_multiple_choice
from agent.evaluation.odinw import evaluate_odinw, load_odinw
from agent.evaluation.ovdeval import evaluate_ovdeval, load_ovdeval
from agent.evaluation.pixmo_count import load_pixmo_count
from agent.evaluation.pope import evaluate_pope, load_pope
from agent.evaluation.proposal_study import Source, closed_contours, jittered, measure_source
from agent.evaluation.refcoco import evaluate_refcoco, load_refcoco
from agent.evaluation.region_names import evaluate_named_regions, load_named_regions
from agent.evaluation.scene_formats import write_formats
from agent.evaluation.suite import Suite, summarise
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import TaskKind
from agent.training.artwork import SPRITE_PX
from agent.training.referring import RELATIONS
from agent.training.scenes import SceneSettings

NUM = 3
SETTINGS = SceneSettings(
    size=(320, 288),
    num_objects=(8, 10),
    families=("noto",),
    concepts=(1, 2, 3, 4, 5, 6),
    restyle_probability=0.0,
    degrade_probability=0.0,
    repeat_probability=0.6,
)


@pytest.fixture(scope="module")
def artwork(tmp_path_factory):
    """One family of filled polygons."""
    folder = tmp_path_factory.mktemp("artwork")
    sprites = np.zeros((8, SPRITE_PX, SPRITE_PX, 4), np.uint8)
    for index in range(1, 7):
        corners = cv2.ellipse2Poly((64, 64), (56, 40), 0, 0, 359, 360 // (index + 2))
        colour = (30 * index, 200 - 20 * index, 90, 255)
        cv2.fillPoly(sprites[index], [corners.astype(np.int32)], colour)
    np.save(folder / "noto.npy", sprites)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(artwork, cache):
    return ComposedSet("tiny", SETTINGS).load(cache, artwork, NUM)


class Truthful:
    """Knows every picture of a set by its bytes and answers from the truth."""

    rules = AnswerRules()

    def __init__(self, data, words=None):
        self.images = {image.path.read_bytes(): image for image in data.images}
        self.names, self.words = data.categories, words or {}
        self.calls = 0

    async def ground(self, frame, tasks, *, boxes=None):
        self.calls += 1
        image = self.images.get(frame.encoded)
        given = image.xyxy if boxes is None and image else boxes
        proposals = Proposals(given, np.ones(len(given)))
        answers = tuple(self._answer(image, task, given) for task in tasks)
        return Grounding(answers, proposals, False)

    def _answer(self, image, task, boxes):
        if task.kind is TaskKind.REGION_OCR:
            word = self.words[tuple(boxes[task.region].tolist())]
            return Answer(task, word, reply=word)
        names = [self.names[category] for category in image.category]
        if task.region is not None or task.regions:
            index = task.region if task.region is not None else task.regions[0]
            name = names[int(box_iou(boxes[index : index + 1], image.xyxy).argmax())]
            return Answer(task, name, reply=name)
        if task.kind is TaskKind.CHAT:
            reply = self._chat(task.query, set(names))
            return Answer(task, reply, reply=reply)
        rows = self._meant(task.query, names, image.xyxy / max(image.width, image.height))
        shown = [row for row in rows if box_iou(image.xyxy[row : row + 1], boxes).max() >= 0.5]
        found = Detections(image.xyxy[shown], np.ones(len(shown)), (task.query,) * len(shown),
                           np.arange(len(shown)))  # fmt: skip
        return Answer(task, "", found, count=len(shown))

    def _chat(self, text, present):
        if text.startswith("Is there any "):
            return "yes" if text[13:].split(" in this image")[0] in present else "no"
        options = dict(line.split(". ", 1) for line in text.splitlines() if line[1:3] == ". ")
        return next(letter for letter, name in options.items() if name in present)

    def _meant(self, words, names, boxes):
        """Rows of a name, or the one row a relation to it means."""
        places = [row for row, name in enumerate(names) if name == words]
        for relation in RELATIONS:
            for name in set(names):
                if relation.template.format(name) == words:
                    rows = [row for row, other in enumerate(names) if other == name]
                    return [rows[int(relation.key(boxes[rows]).argmin())]]
        return places


def all_but_last(data):
    """A proposal network that misses the last object of each picture."""
    boxes = {image.path.read_bytes(): image.xyxy[:-1] for image in data.images}

    def propose(frame):
        found = boxes[frame.encoded]
        return Proposals(found, np.ones(len(found)))

    return propose


def values(tally):
    return {name: estimate.value for name, estimate in tally.estimates().items()}


def test_sets_are_composed_once_and_kept_apart(artwork, cache, data):
    folder = ComposedSet("tiny", SETTINGS).folder(cache, NUM)
    before = (folder / "annotations.json").stat().st_mtime_ns
    again = ComposedSet("tiny", SETTINGS).load(cache, artwork, NUM)
    assert (folder / "annotations.json").stat().st_mtime_ns == before
    assert [image.category for image in again.images] == [i.category for i in data.images]
    assert ComposedSet("tiny", crowded_set(9, SETTINGS).settings).folder(cache, NUM) != folder


def test_the_three_sets_share_nothing_they_should_not():
    drawn, twemoji, other = evaluation_sets()
    assert "twemoji" not in drawn.settings.families + other.settings.families
    assert twemoji.settings.families == ("twemoji",)
    assert twemoji.settings.concepts == drawn.settings.concepts
    assert not set(drawn.settings.concepts) & set(other.settings.concepts)


async def test_the_truth_scores_full_marks_in_every_format(tmp_path, data):
    folders = write_formats(data, tmp_path)
    pipeline, images = Truthful(data), data.images[0].path.parent

    async def share(name, tally):
        return values(await tally)[name]

    refs = load_refcoco(folders["refcoco"] / "refs(composed).json",
                        folders["refcoco"] / "instances.json", images)  # fmt: skip
    assert await share("accuracy", evaluate_refcoco(pipeline, refs)) == 1.0
    counts = load_countbench(
        folders["countbench"] / "CountBench.json", images=images,
        questions=folders["countbench"] / "countbench_paired_questions.json",
    )  # fmt: skip
    assert max(question.count for question in counts) > 1
    assert await share("accuracy", evaluate_counting(pipeline, counts)) == 1.0
    pixmo = load_pixmo_count(folders["pixmo-count"] / "pixmo_count.json", images=images)
    assert await share("mean_absolute_error", evaluate_counting(pipeline, pixmo)) == 0.0
    (ovd,) = load_ovdeval(folders["ovdeval"]).values()
    assert pytest.approx(1.0) == (await evaluate_ovdeval(pipeline, ovd)).NMS_AP
    for scores in (await evaluate_odinw(pipeline, load_odinw(folders["odinw"]))).values():
        assert pytest.approx(1.0) == scores.AP
    regions = load_named_regions(folders["lvis"] / "lvis_val_category.json", images)
    assert await share("exact", evaluate_named_regions(pipeline, regions)) == 1.0
    ferret = load_ferret_bench(folders["ferret-bench"], images)
    assert await share("exact", evaluate_ferret_bench(pipeline, ferret, answers=None)) > 0.9
    choices = load_multiple_choice(folders["mmbench"] / "choices.tsv")
    circular = evaluate_multiple_choice(pipeline, choices, circular=True)
    assert await share("accuracy", circular) == 1.0
    pope = load_pope(folders["pope"] / "composed_pope_random.json", images)
    assert await share("strict_accuracy", evaluate_pope(pipeline, pope)) == 1.0


async def test_printed_words_are_read_where_they_stand(tmp_path, data):
    folder = write_formats(data, tmp_path)["cocotext"]
    written = load_cocotext(folder / "cocotext.v2.json", folder)
    words = {tuple(box.tolist()): word for image in written
             for box, word in zip(image.boxes, image.words, strict=True)}  # fmt: skip
    assert len(words) == 3 * NUM
    assert values(await evaluate_cocotext(Truthful(data, words), written))["exact"] == 1.0
    image = cv2.imread(str(written[0].path), cv2.IMREAD_GRAYSCALE)
    x1, y1, x2, y2 = written[0].boxes[0].astype(int)
    inside = image[y1:y2, x1:x2]
    # A plate and its ink: nearly black and nearly white side by side.
    assert inside.min() < 60
    assert inside.max() > 195


async def test_the_suite_from_the_truth_and_resumed(tmp_path, data):
    results = tmp_path / "suite.jsonl"
    pipeline = Truthful(data)
    first = await Suite(pipeline, all_but_last(data)).ask(data, results, title="")
    figures = summarise(first, data, num_resamples=3)
    perfect = {"shown_recall", "AP", "AP50", "region_top1", "region_top1_exact", "referring",
               "counting", "yes_no", "counting_several", "recall", "precision", "f1"}  # fmt: skip
    assert {name: round(figures[name].value, 6) for name in perfect} == dict.fromkeys(perfect, 1.0)
    assert figures["false_positives"].value == figures["counting_error"].value == 0.0
    # All but the last object of each picture: recall is of what the network found, not of what
    # was shown.
    num_objects = sum(len(image.xyxy) for image in data.images)
    assert figures["proposal_recall"].value == pytest.approx(1 - NUM / num_objects)
    assert "ocr" not in figures

    # Cut off in the middle of the last line: that image alone is asked again, with equal results.
    text = results.read_text()
    results.write_text(text[: text.rstrip("\n").rfind("\n") + 40])
    again = Truthful(data)
    assert await Suite(again, all_but_last(data)).ask(data, results, title="") == first
    assert again.calls == 2  # its questions, and the names of its true boxes
    assert len(results.read_text().splitlines()) == NUM


async def test_the_suite_reads_words(tmp_path, data):
    folder = tmp_path / "set"
    pipeline = Truthful(data)
    results = folder / "suite.jsonl"
    suite = Suite(pipeline, all_but_last(data))
    await suite.ask(data, results, title="")
    write = write_formats(data, tmp_path / "formats")["cocotext"]
    (folder / "cocotext").symlink_to(write)
    written = load_cocotext(write / "cocotext.v2.json", write)
    pipeline.words = {tuple(box.tolist()): "wrong" for image in written for box in image.boxes}
    box, word = written[0].boxes[0], written[0].words[0]
    pipeline.words[tuple(box.tolist())] = word
    figures = await suite.measure(data, results, title="")
    assert figures["ocr"].value == pytest.approx(1 / (3 * NUM))


async def test_boxes_from_elsewhere(data):
    pipeline = Truthful(data)
    true = await measure_source(
        Source(pipeline, lambda image: image.xyxy), data, title="", num_resamples=3
    )
    assert true["proposal_recall"].value == true["recall"].value == 1.0
    rough = await measure_source(Source(pipeline, jittered(0.3)), data, title="", num_resamples=3)
    assert rough["proposal_recall"].value < 0.7
    assert true["boxes"].value == rough["boxes"].value
    assert true["box_precision"].value == 1.0 > rough["box_precision"].value > 0.0
    # The answers of the truth are exact boxes, so what is lost is what was not shown.
    assert rough["recall"].value == pytest.approx(rough["proposal_recall"].value, abs=0.02)
    nothing = await measure_source(
        Source(pipeline, lambda image: image.xyxy[:0]), data, title="", num_resamples=3
    )
    assert nothing["recall"].value == nothing["AP"].value == nothing["boxes"].value == 0.0
    assert "box_precision" not in nothing


def test_a_detector_that_learned_nothing_finds_plain_shapes(tmp_path):
    true = np.array([[20, 30, 80, 70], [120, 40, 160, 150], [200, 150, 280, 200]], np.float32)
    picture = np.full((240, 320, 3), 235, np.uint8)
    for x1, y1, x2, y2 in true.astype(int):
        picture[y1:y2, x1:x2] = (40, 60, 90)
    path = tmp_path / "shapes.png"
    cv2.imwrite(str(path), picture)
    boxes = closed_contours(CocoImage(1, path, 320, 240, true, (1, 1, 1)))
    assert (box_iou(true, boxes).max(axis=1) > 0.9).all()
    cv2.imwrite(str(path), np.full_like(picture, 128))
    assert len(closed_contours(CocoImage(1, path, 320, 240, true, (1, 1, 1)))) == 0


class FixedProposer:
    """Proposes the true boxes of a picture, last drawn first."""

    def __init__(self, data):
        self.images = {image.path.read_bytes(): image for image in data.images}

    def propose(self, frames):
        true = self.images[frames[0].encoded].xyxy[::-1]
        return [Proposals(true, np.linspace(1, 0.5, len(true)))]


async def test_paging_shows_what_a_hundred_boxes_leave_out(artwork, cache):
    crowded = ComposedSet("crowd", crowded_set(130, SETTINGS).settings).load(cache, artwork, 1)
    (image,) = crowded.images
    assert len(image.xyxy) > 105
    clutter = await measure_clutter(Truthful(crowded), FixedProposer(crowded), crowded)
    assert clutter.num_objects == len(image.xyxy)
    shown = 100 / len(image.xyxy)
    for boxes in ("proposals, best 100", "true boxes, any 100"):
        assert clutter.figures[boxes]["proposal_recall"].value == pytest.approx(shown, abs=0.02)
        assert clutter.figures[boxes]["recall"].value < 1.0
    for boxes in ("proposals, paged", "true boxes, paged"):
        assert clutter.figures[boxes]["recall"].value == 1.0
    assert json.dumps(clutter.num_objects)
