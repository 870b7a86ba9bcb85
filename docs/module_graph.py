"""Draws docs/architecture.md's picture from the imports in the code: `python docs/module_graph.py`.

Modules are gathered into the parts a reader thinks in; an arrow means "imports from". Arrows that
follow from others are left out. tests/unit/test_architecture.py fails when the picture is old.
"""

from __future__ import annotations

from pathlib import Path

import grimp

PAGE = Path(__file__).parent / "architecture.md"
BEGIN, END = "<!-- module graph: begin -->", "<!-- module graph: end -->"
PACKAGES = ("agent", "deployments", "groundstream")
PARTS = {
    "values": "frame detections features frame_summary errors checked_settings settings "
    "server_settings stage_settings urgency prompts vocabulary plain_nouns descriptions "
    "answer_rules model_directory hub chosen_model model_identity base_package interrupts "
    "started_tasks written_text devices clock picture_cost tenant_share video_packets "
    "video_decoder",
    "pipeline": "pipeline paging parsing carried_answers single_flight stages",
    "region cache": "region_cache feature_codec redis_connection",
    "quotas": "quotas",
    "progress": "progress",
    "vision stages": "proposer encoders feature_tensors processor batching device_picture",
    "language stage": "generation generation_request engine engine_backends drafting grammar "
    "prefix_cache sequence tokenizer model_tokenizer label_lists region_choice beliefs "
    "class_evidence",
    "zoom": "crops zoom zoom_policy revisions ergo_protocol ergo",
    "reports": "inspection model_needs grounded_output",
}
"""Modules of `agent` by part; packages inside it are parts of their own."""
SHELL = "limits and process resources"
SHELL_MODULES = ("admission", "autoscaling", "fair_queue", "process_resources")
"""Modules of `deployments` beside its packages; `app` is a part of its own."""


def part_of(module: str) -> str:
    """The part a module belongs to.

    Raises:
        KeyError: a module of `agent` that no part claims; add it to `PARTS`.
    """
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    if package == "groundstream":
        return "groundstream.video" if name == "video" else package
    if (Path(__file__).parents[1] / package / name).is_dir():
        return f"{package}.{name}"
    if package == "deployments":
        return SHELL if name in SHELL_MODULES else f"{package}.{name}"
    for part, modules in PARTS.items():
        if name in modules.split():
            return part
    raise KeyError(f"{module} is in no part of the architecture; add it to docs/module_graph.py")


def imports_between_parts() -> dict[str, set[str]]:
    """Part to the parts it imports from."""
    graph = grimp.build_graph(*PACKAGES)
    found: dict[str, set[str]] = {}
    for module in graph.modules - {"agent", "deployments"}:
        part = part_of(module)
        imported = {part_of(other) for other in graph.find_modules_directly_imported_by(module)}
        found.setdefault(part, set()).update(imported - {part})
    return found


def reduced(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no path of other arrows replaces."""

    def reaches(start: str, goal: str, seen: frozenset[str]) -> bool:
        nearer = imports.get(start, set()) - seen
        return goal in nearer or any(reaches(n, goal, seen | nearer) for n in nearer)

    return sorted(
        (part, other)
        for part, others in imports.items()
        for other in others
        if not any(reaches(way, other, frozenset({part})) for way in others - {other})
    )


def drawing() -> str:
    """The picture as a Mermaid block."""
    imports = imports_between_parts()
    names = {part: f"m{number}" for number, part in enumerate(sorted(imports))}
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {names[part]}["{part}"]' for part in sorted(imports)]
    lines += [f"    {names[a]} --> {names[b]}" for a, b in reduced(imports)]
    return "\n".join([*lines, "```"])


def page_with(picture: str) -> str:
    """The page with its picture replaced."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{picture}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(drawing()))
