"""Average precision against pycocotools, and intervals whose width is known beforehand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from agent.evaluation.average_precision import (
    average_precision,
    resampled_precision,
    weighted_precision,
)
from agent.evaluation.tally import Tally, interval


def random_set(num_images=12, seed=3):
    """Boxes, and answers that miss some, move some and invent some."""
    rng = np.random.default_rng(seed)
    annotations, rows = [], []
    for image in range(1, num_images + 1):
        for _ in range(6):
            category = int(rng.integers(1, 5))
            x, y = rng.uniform(0, 300, 2)
            box = [float(x), float(y), float(rng.uniform(10, 120)), float(rng.uniform(10, 120))]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
            moved = [value + float(rng.normal(0, 6)) for value in box]
            for chance, name, place in ((0.7, category, moved), (0.3, 1, box)):
                if rng.random() < chance:
                    rows.append({"image_id": image, "category_id": name, "bbox": place,
                                 "score": float(rng.random())})  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 400}
              for i in range(1, num_images + 1)]  # fmt: skip
    categories = [{"id": k, "name": str(k)} for k in range(1, 6)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def oracle(truth, rows):
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**truth, "info": {}}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_equal_to_pycocotools():
    truth, rows = random_set()
    expected = oracle(truth, [dict(row) for row in rows])
    found = average_precision(truth, rows)
    assert pytest.approx((expected[0], expected[1], expected[8]), abs=1e-9) == (
        found.AP,
        found.AP50,
        found.AR100,
    )
    assert 0.1 < found.AP < found.AP50 < 0.9


def test_images_drawn_again():
    truth, rows = random_set()
    found = resampled_precision(truth, rows, num_resamples=40)
    whole = average_precision(truth, rows)
    assert found["AP"].value == whole.AP
    assert found["AP"].low < whole.AP < found["AP"].high
    # One image drawn again and again is the same set every time.
    one = {**truth, "images": truth["images"][:1],
           "annotations": [a for a in truth["annotations"] if a["image_id"] == 1]}  # fmt: skip
    alone = resampled_precision(one, [r for r in rows if r["image_id"] == 1], num_resamples=3)
    assert alone["AP50"].low == pytest.approx(alone["AP50"].value)
    assert alone["AP50"].high == pytest.approx(alone["AP50"].value)


def test_nothing_answered():
    truth, _ = random_set()
    assert resampled_precision(truth, [], num_resamples=3)["AP"].value == 0.0


def test_a_share_and_its_interval():
    tally = Tally()
    for number in range(400):
        tally.add(str(number), "right", number % 4 == 0)
    estimate = tally.estimates()["right"]
    # A share of 1/4 in 400: its standard error is 0.0217, 1.96 of them make the interval.
    assert estimate.value == 0.25
    assert estimate.count == 400
    assert estimate.low == pytest.approx(0.25 - 0.0424, abs=0.006)
    assert estimate.high == pytest.approx(0.25 + 0.0424, abs=0.006)


def test_questions_about_one_image_stand_or_fall_together():
    together, apart = Tally(), Tally()
    for number in range(100):
        for question in range(10):
            together.add(str(number), "right", number % 2)
            apart.add(f"{number}/{question}", "right", number % 2)
    wide, narrow = together.estimates()["right"], apart.estimates()["right"]
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def test_a_share_of_nothing_is_left_out():
    tally = Tally()
    tally.add("1", "precision", 0, 0)
    assert tally.estimates() == {}
    assert Tally().estimates() == {}


def test_an_interval_holds_its_figure():
    resampled = np.array([0.30, 0.31, 0.32, 0.31])
    plain = interval(0.2, resampled)
    assert (plain.low, plain.high) == (0.2, pytest.approx(0.32, abs=0.002))
    centred = interval(0.2, resampled, centred=True)
    # The mean, 0.31, is moved to 0.2.
    assert (centred.low, centred.high) == pytest.approx((0.19, 0.21), abs=0.002)
    assert 0.0 <= interval(0.001, resampled - 0.3, centred=True).low < 0.001
    assert interval(0.5, resampled[:0]).high == 0.5


def test_images_counted_twice_are_images_that_are_there_twice():
    truth, rows = random_set()
    for number in (3, 40):
        truth["annotations"][number]["iscrowd"] = 1
    ids = [image["id"] for image in truth["images"]]
    times = np.random.default_rng(1).integers(0, 3, len(ids))
    places = {image: place for place, image in enumerate(ids)}
    found = weighted_precision(truth, rows, places, np.stack([times, np.ones(len(ids))]))
    copies = [(image, copy) for image, count in zip(ids, times, strict=True)
              for copy in range(count)]  # fmt: skip
    again = {
        **truth,
        "images": [{"id": image + 100 * copy} for image, copy in copies],
        "annotations": [{**a, "image_id": image + 100 * copy} for image, copy in copies
                        for a in truth["annotations"] if a["image_id"] == image],
    }  # fmt: skip
    again["annotations"] = [{**a, "id": k} for k, a in enumerate(again["annotations"], start=1)]
    repeated = [{**r, "image_id": image + 100 * copy} for image, copy in copies for r in rows
                if r["image_id"] == image]  # fmt: skip
    assert found[0] == pytest.approx(oracle(again, repeated)[:2], abs=1e-9)
    assert found[1] == pytest.approx(oracle(truth, [dict(r) for r in rows])[:2], abs=1e-9)
