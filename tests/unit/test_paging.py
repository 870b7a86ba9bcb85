"""More boxes than a prompt holds: every box is looked at, and answers name the frame's boxes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detections import Proposals
from agent.features import FrameFeatures, Generation
from agent.paging import in_groups, pages_for
from agent.parsing import AnswerStatus, join_pages
from agent.prompts import Task, TaskKind
from groundstream.errors import InvalidQuery


def proposals(count):
    corners = np.arange(count, dtype=np.float32)[:, None]
    return Proposals(np.concatenate([corners, corners, corners + 1, corners + 1], 1),
                     np.linspace(1, 0, count, dtype=np.float32))  # fmt: skip


def wrote(text, *, truncated=False):
    return Generation((text,), (0.5,), truncated, 10, 4, 3)


@given(st.integers(0, 400))
def test_a_search_looks_at_every_box_once(count):
    pages = pages_for(Task.detect("dog"), count)
    assert np.concatenate([page.indices for page in pages]).tolist() == list(range(count))
    assert all(len(page) <= 100 for page in pages)


@given(st.integers(1, 400), st.data())
def test_a_reference_stands_on_every_page(count, data):
    region = data.draw(st.integers(0, count - 1))
    task = Task.find_similar(region)
    pages = pages_for(task, count)
    seen = {int(box) for page in pages for box in page.indices}
    assert seen == set(range(count))
    for page in pages:
        assert len(page) <= 100
        assert page.indices[page.task(task).region] == region


@given(st.lists(st.integers(0, 12)), st.integers(1, 20))
def test_groups_keep_the_order_and_the_limit(sizes, most):
    groups = in_groups(sizes, lambda size: size, most)
    assert [size for group in groups for size in group] == sizes
    assert all(sum(group) <= most or len(group) == 1 for group in groups)
    for before, after in itertools.pairwise(groups):
        assert sum(before) + after[0] > most, "no group is ended early"


def test_questions_about_one_box_take_one_page_that_holds_it():
    (page,) = pages_for(Task.read_region(250), 300)
    assert 250 in page.indices
    assert len(page) == 100
    assert page.task(Task.read_region(250)).text.count("<region0>") == 1
    assert len(pages_for(Task.describe_image(), 300)) == 1


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (0, "this frame has no boxes; send some"),
        (1, "this frame has 1 box; use 0"),
        (4, "this frame has 4 boxes; use 0 to 3"),
    ],
)
def test_boxes_that_do_not_exist(count, says):
    with pytest.raises(InvalidQuery, match=f"region {count} does not exist: {says}"):
        pages_for(Task.describe_region(count), count)


@pytest.mark.parametrize(
    "task",
    [
        Task(TaskKind.REGION_CAPTION, region=-1),
        Task(TaskKind.VISUAL_PROMPT, region=-1),
        Task(TaskKind.CHAT, "What is {}?", regions=(-1,)),
    ],
)
@pytest.mark.parametrize("count", [0, 4, 300])
def test_negative_regions_of_a_task_made_by_hand(task, count):
    with pytest.raises(InvalidQuery, match="region -1 is negative; regions are counted from 0"):
        pages_for(task, count)


def test_more_regions_than_a_page_holds():
    with pytest.raises(InvalidQuery, match="limit"):
        pages_for(Task.chat("{} " * 101, regions=tuple(range(101))), 300)


def test_answers_are_joined_in_the_frames_numbers():
    task = Task.count("dog")
    pages = pages_for(task, 150)
    texts = ["<ground>dog</ground><objects><region3><region120></objects> 1",
             "<ground>dog</ground><objects><region0><region49></objects> 2"]  # fmt: skip
    answer = join_pages(task, [(p, wrote(t)) for p, t in zip(pages, texts, strict=True)],
                        proposals(150))  # fmt: skip
    assert answer.detections.region.tolist() == [3, 100, 149]
    assert answer.detections.xyxy[:, 0].tolist() == [3, 100, 149]
    assert answer.count == 3
    assert answer.num_proposals == 150
    assert answer.num_unknown_regions == 1
    assert "<region149>" in answer.text
    assert answer.num_passes == 6
    assert answer.status is AnswerStatus.OK


def test_a_truncated_page_is_said():
    task = Task.detect("dog")
    pages = pages_for(task, 150)
    answer = join_pages(
        task,
        [(pages[0], wrote("<ground>dog</ground><objects></objects>")),
         (pages[1], wrote("<ground>dog", truncated=True))],
        proposals(150),
    )  # fmt: skip
    assert answer.status is AnswerStatus.TRUNCATED


def test_selected_features_have_keys_of_their_own():
    features = FrameFeatures(
        width=8, height=8, proposals=proposals(150), grid=(2, 2), key="frame",
        image_tokens=np.zeros((1, 4), dtype=np.float32),
        primary_regions=np.arange(150, dtype=np.float32)[:, None],
        auxiliary_regions=np.arange(150, dtype=np.float32)[:, None],
    )  # fmt: skip
    first, second = (features.select(page.indices) for page in pages_for(Task.detect("x"), 150))
    assert (len(first.proposals), len(second.proposals)) == (100, 50)
    assert second.primary_regions[0] == 100
    assert len({features.key, first.key, second.key}) == 3
    assert first.image_key == second.image_key == "frame"
    assert features.select(np.arange(150)) is features
