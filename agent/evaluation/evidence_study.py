"""Experiment: what does the language model read from either of the two vision parts?

The same pictures and questions with one part's classes read as "nothing": their names in the
connector are replaced by the vector that stands for no belief, so that belief in them is doubt.
Proposals, objectness and appearance stay. Class evidence, which reads the vision parts without the
connector (`agent.beliefs`), is silent. For models whose connector mixes names.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from agent.evaluation.high_resolution_scenes import linked_model
from agent.model.configuration import NAME_MIXTURE
from agent.model.name_mixture import NUM_COCO
from groundstream.errors import SettingsError

PARTS = {
    "both": slice(0, 0),
    "detector alone": slice(NUM_COCO, None),
    "classifier alone": slice(0, NUM_COCO),
}
"""What is read, and the classes that are silent then."""
_SILENT = {"evidence_share": 0.0, "reads_descriptions": False, "tells_regions": False}
"""Rules by which class evidence speaks beside the language model, or in its place."""


def with_silent(model: Path, silent: slice, folder: Path) -> Path:
    """The model's folder anew: without class evidence beside the language model, and with a
    connector that reads nothing from some classes.

    Raises:
        SettingsError: the model's connector mixes no names.
    """
    target, config = linked_model(model, folder, _SILENT)
    if config.get("mm_projector_type") != NAME_MIXTURE:
        raise SettingsError("only a model whose connector mixes names can be shown half of them")
    adapter = target / config["groundstream"]["adapter"]
    state = load_file(adapter)
    for slot, name in enumerate(("own_names", "everyday_names")):
        state[f"connector.{name}"][silent] = state["connector.nothing"][slot].to(
            state[f"connector.{name}"].dtype
        )
    adapter.unlink()
    save_file(state, adapter)
    return target
