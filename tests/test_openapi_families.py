"""What the OpenAPI document says of each family is what a server takes and answers."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing, TaskFamily
from prefixbank.model_store.tasks import task_module
from prefixbank.model_store.tasks.rows import MAX_WINDOWS
from prefixbank.serving.encoding import EncodingLimits
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.routes.openapi import DOCUMENT
from prefixbank.serving.routes.openapi_families import FAMILIES
from prefixbank.serving.samples import SAMPLES, sample_for
from prefixbank.serving.service import Service
from tests.conftest import ROOT
from tests.family_prompts import CHOICES, QUESTIONS, ROLES, family_prompt
from tests.serving_cases import TEXT, TOKENS, random_prompt
from tests.tiny import tiny_backbone_folder
from tests.wire_cases import client

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from prefixbank.model_store.task_prompt import TaskPrompt


def path_of(family: TaskFamily) -> str:
    return f"/models/families/{family}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))
    prompts: dict[TaskFamily, TaskPrompt] = {
        **{family: random_prompt(backbone, 5, seed=1, family=family) for family in (TEXT, TOKENS)},
        **{family: family_prompt(backbone, family, 5, seed=2) for family in (QUESTIONS, CHOICES, ROLES)},
    }
    tasks = {Address("families", str(family)): prompt for family, prompt in prompts.items()}
    with Service(backbone, MemoryStore(tasks)) as service:
        yield service


def ask(service: Service, family: TaskFamily, body: object) -> httpx.Response:
    async def run() -> httpx.Response:
        async with client(service) as http:
            return await http.post(path_of(family), json=body)

    return asyncio.run(run())


def complaints(value: object, name: str) -> list[str]:
    """Where a value is not what the document says of it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def bodies(family: TaskFamily) -> list[dict[str, Any]]:
    one = SAMPLES[family].single
    return [{"inputs": one}, {"inputs": [one, one]}, {"inputs": one, "parameters": {"truncation": True}}]


@pytest.mark.parametrize("family", TaskFamily)
def test_a_family_takes_and_answers_what_the_document_says(service: Service, family: TaskFamily) -> None:
    name = FAMILIES[family].name
    for body in bodies(family):
        response = ask(service, family, body)
        assert response.status_code == 200, response.text
        assert complaints(body, f"{name}Request") == []
        assert complaints(response.json(), f"{name}Answer") == []
        assert complaints(response.json(), "Answer") == []


@pytest.mark.parametrize("family", TaskFamily)
def test_the_documents_example_is_an_answer(family: TaskFamily) -> None:
    assert complaints(FAMILIES[family].example, f"{FAMILIES[family].name}Answer") == []


@pytest.mark.parametrize("family", [QUESTIONS, CHOICES, ROLES])
def test_another_familys_input_is_refused_and_is_none_by_the_document(service: Service, family: TaskFamily) -> None:
    for other in set(TaskFamily) - {family}:
        body = {"inputs": SAMPLES[other].single}
        assert complaints(body, f"{FAMILIES[family].name}Request") != []
        response = ask(service, family, body)
        assert (response.status_code, response.json()["error_type"]) == (422, "invalid_request")


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_questions_give_one_answer_or_a_list_as_the_client_unpacks_them(service: Service, top_k: int) -> None:
    body = {"inputs": SAMPLES[QUESTIONS].single, "parameters": {"top_k": top_k}}
    value = ask(service, QUESTIONS, body).json()
    assert isinstance(value, dict) if top_k == 1 else len(value) == top_k
    assert complaints(value, "QuestionAnsweringAnswer") == []


@pytest.mark.parametrize("family", TaskFamily)
def test_parameters_are_those_of_the_family(family: TaskFamily) -> None:
    module = task_module(family, Preprocessing(max_tokens=64))
    schema = DOCUMENT["components"]["schemas"][f"{FAMILIES[family].name}Parameters"]
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema["properties"].values())
    assert schema["properties"].keys() == type(module.parse_parameters({})).model_fields.keys()
    with pytest.raises(InvalidRequest):
        module.parse_parameters({"temperature": 1})


def test_the_examples_in_the_docs_are_requests_and_their_answers() -> None:
    page = (ROOT / "docs" / "requests.md").read_text()
    for section in page.split("\n## ")[1:-1]:
        family, _, text = section.partition("\n")
        asked, answered = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
        name = FAMILIES[TaskFamily(family)].name
        assert (asked["inputs"], answered) == (SAMPLES[TaskFamily(family)].single, FAMILIES[TaskFamily(family)].example)
        assert complaints(asked, f"{name}Request") == complaints(answered, f"{name}Answer") == []
    assert [f"\n## {family}\n" in page for family in TaskFamily] == [True] * len(TaskFamily)


def test_the_limits_in_the_docs_are_the_codes() -> None:
    page = (ROOT / "docs" / "requests.md").read_text().split("\n## ")[-1]
    limits = EncodingLimits()
    told = (f"1 to {limits.max_inputs} inputs", f"{limits.max_rows} rows", f"{limits.max_characters:,} characters")
    assert [text for text in (*told, f"{MAX_WINDOWS} windows") if text not in page] == []


def test_samples_are_those_of_one_text_or_two() -> None:
    assert sample_for("text-classification", is_pair=True) == SAMPLES[TEXT].pair
    assert sample_for("text-classification", is_pair=False) == SAMPLES[TEXT].single
    assert sample_for("question-answering", is_pair=True) == SAMPLES[QUESTIONS].single
    assert sample_for("text-generation", is_pair=False) is None


def test_the_model_list_tells_a_familys_settings(service: Service) -> None:
    async def run() -> httpx.Response:
        async with client(service) as http:
            return await http.get("/v1/models")

    for family in TaskFamily:
        asyncio.run(service.answer(Address("families", str(family)), SAMPLES[family].single))
    settings = {entry["task"]: entry.get("settings") for entry in asyncio.run(run()).json()["data"]}
    assert settings.keys() == set(TaskFamily)
    assert settings["question-answering"]["stride"] == 128
    assert settings["semantic-role-labeling"] == {"separator": "[SEP]"}
    assert settings["text-classification"] is settings["multiple-choice"] is None
