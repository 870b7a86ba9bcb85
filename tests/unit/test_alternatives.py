"""The benchmark of other models runs with tiny shapes; the published shapes are the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agent.frame import frame_from_rgb
from benchmarks.alternatives import OURS, Keeper, Shapes, alternatives, measure
from tests.unit.tiny_model import write_tiny_model


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture():
    rng = np.random.default_rng(0)
    return frame_from_rgb(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.mark.usefixtures("one_thread")
async def test_smoke(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    rows = await measure(picture(), model=str(model), rounds=1, shapes=Shapes.smoke())
    ours, *others = rows
    assert ours["model"] == OURS
    assert (ours["times_first"], ours["times_further"], ours["times_ten"]) == (1.0, 1.0, 1.0)
    assert "kept_ms" not in ours
    assert [row["model"] for row in others] == [
        "Grounding DINO tiny", "OWLv2 base", "Florence-2 base"
    ]  # fmt: skip
    for row in others:
        for figure in ("first", "further", "kept", "ten"):
            assert row[f"{figure}_ms"] > 0
            base = "further" if figure == "kept" else figure
            ratio = row[f"{figure}_ms"] / ours[f"{base}_ms"]
            assert row[f"times_{figure}"] == pytest.approx(ratio, rel=0.05, abs=0.02)
            assert row[f"{figure}_processor_ms"] > 0
            assert row[f"times_{figure}_processor"] >= 0


@pytest.mark.usefixtures("one_thread")
def test_a_kept_vision_tower_changes_no_answer() -> None:
    with torch.inference_mode():
        for other in alternatives(Shapes.smoke()):
            whole = other.ask(picture(), 2)
            other.keeper.keeping = True
            kept = other.ask(picture(), 2)
            flat = [torch.as_tensor(t) for t in tensors(whole)]
            assert flat
            for one, two in zip(flat, tensors(kept), strict=True):
                assert torch.equal(one, two)


def tensors(answer: object) -> list[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return [answer]
    return [t for part in answer for t in tensors(part)]  # type: ignore[attr-defined]


def test_a_part_that_is_kept_is_not_run_again() -> None:
    part = nn.Linear(2, 2)
    keeper = Keeper(part)
    first = part(torch.zeros(1, 2))
    assert not torch.equal(part(torch.ones(1, 2)), first)
    keeper.keeping = True
    assert torch.equal(part(torch.zeros(1, 2)), part(torch.ones(1, 2)))
    keeper.keeping = False
    assert torch.equal(part(torch.zeros(1, 2)), first)


def test_published_shapes() -> None:
    shapes = Shapes.published()
    swin = shapes.dino.backbone_config
    assert (swin.embed_dim, *swin.depths, shapes.dino.num_queries) == (96, 2, 2, 6, 2, 900)
    assert shapes.owl.vision_config.image_size // shapes.owl.vision_config.patch_size == 60
    with torch.device("meta"):
        sizes = [other.parameters_m for other in alternatives(shapes)]
    # As published: 172 (the text encoder's pooler apart), 155 and 231 million parameters.
    assert sizes == pytest.approx([172, 155, 231], abs=4)
