"""The pages say what the code says: nothing missing, nothing old, no link into nowhere."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from agent import errors as agent_errors
from deployments.wire.status import STATUS_BY_CODE
from docs import api_reference, settings_reference
from groundstream import errors
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.rpc_errors import ServiceError

DOCS = Path(__file__).parents[2] / "docs"
TESTS = DOCS.parent / "tests"
PAGES = sorted(DOCS.glob("*.md"))
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
ERRORS = [
    kind
    for module in (errors, agent_errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, errors.AgentError) and kind is not errors.AgentError
]


def test_the_api_page_is_the_proto() -> None:
    assert api_reference.page() == api_reference.PAGE.read_text(), (
        "run `python docs/api_reference.py`"
    )


def test_the_api_page_links_to_what_it_has() -> None:
    page = api_reference.PAGE.read_text()
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) - headings == set()
    messages = {name.lower() for name in pb.DESCRIPTOR.message_types_by_name}
    assert messages <= headings


def test_the_tuning_page_is_the_settings() -> None:
    assert settings_reference.page() == settings_reference.PAGE.read_text(), "run `make pages`"


def test_the_shipped_file_and_its_schema_are_the_settings() -> None:
    shipped = settings_reference.FILE.read_text()
    assert settings_reference.serve_config() == shipped, "run `make pages`"
    schema = settings_reference.SCHEMA.read_text()
    assert settings_reference.schema() == schema, "run `make pages`"
    args = yaml.safe_load(shipped)["applications"][0]["args"]
    jsonschema.validate(args, json.loads(schema), jsonschema.Draft202012Validator)
    args["stream"]["follow"]["keyframe"]["busy_share"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is less than or equal to"):
        jsonschema.validate(args, json.loads(schema), jsonschema.Draft202012Validator)


def test_every_setting_is_on_the_tuning_page() -> None:
    page = settings_reference.PAGE.read_text()
    deployment_keys = set(re.findall(r"`(\w+)`", page.split("## Deployments")[1]))
    assert settings_reference.keys_of_file() - deployment_keys == set()
    assert [s.key for s in settings_reference.all_settings() if not s.meaning] == []


def test_every_option_of_a_deployment_is_on_the_tuning_page() -> None:
    page = settings_reference.PAGE.read_text().split("## Deployments")[1]
    fields = settings_reference.DeploymentSettings.__dataclass_fields__
    assert [name for name in fields if f"`{name}`" not in page] == []


@pytest.mark.parametrize("kind", [*ERRORS, ServiceError])
def test_every_error_is_explained(kind: type[errors.AgentError]) -> None:
    page = (DOCS / "errors.md").read_text()
    assert f"\n## {kind.__name__}\n" in page
    rows = [row for row in page.splitlines() if row.startswith(f"| `{kind.__name__}` |")]
    assert len(rows) == 1
    if code := kind.code:
        status = STATUS_BY_CODE[code].name
        assert rows[0].startswith(f"| `{kind.__name__}` | {code} | {status} |")


def test_every_code_of_the_wire_is_explained() -> None:
    page = (DOCS / "errors.md").read_text()
    codes = [name.removeprefix("ERROR_CODE_") for name in pb.ErrorCode.keys()]  # noqa: SIM118
    assert [code for code in codes if code not in page and code != "UNSPECIFIED"] == []


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *PAGES, *DECISIONS], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_fault_has_a_row() -> None:
    page = (DOCS / "hardening.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", page, flags=re.MULTILINE)
    assert {int(number) for number, _ in rows} == set(range(1, 30))
    assert [row for row in rows if ".py" not in row[1].rsplit("|", 1)[-1]] == []


@pytest.mark.parametrize("name", ["hardening.md", "bad_input.md", "threat_model.md", "faults.md"])
def test_pages_name_tests_that_exist(name: str) -> None:
    page = (DOCS / name).read_text()
    files = list(TESTS.glob("*/test_*.py"))
    known = {path.name for path in files} | {f"{path.parent.name}/{path.name}" for path in files}
    named = set(re.findall(r"(?:(?:unit|integration|parity)/)?test_\w+\.py", page))
    assert named - known == set()
    functions = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in files)))
    assert set(re.findall(r"`(test_\w+)`", page)) - functions == set()


def test_every_decision_has_a_topic_and_a_status() -> None:
    index = (DOCS / "decisions" / "README.md").read_text()
    for page in DECISIONS:
        assert page.name == "README.md" or f"({page.name})" in index
        if page.name in ("README.md", "embedded_model.md"):
            continue
        for entry in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
            assert "**Status.**" in entry or page.name == "stage_calls.md", entry.splitlines()[0]


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in PAGES if f"({page.name})" not in index] == ["index.md"]
