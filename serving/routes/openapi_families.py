"""What each task family takes and answers, as JSON schemas with an example.

Parameters are described by their own classes; inputs and answers by hand, and a test asks a server for each. It
refuses to know paths, and which tasks there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.model_store.tasks.multiple_choice import CONNECTORS, MAX_CHOICES, MultipleChoiceParameters
from prefixbank.model_store.tasks.question_answering import QuestionAnsweringParameters
from prefixbank.model_store.tasks.semantic_roles import MAX_PREDICATES, SemanticRolesParameters
from prefixbank.model_store.tasks.text_classification import TextClassificationParameters
from prefixbank.model_store.tasks.token_classification import TokenClassificationParameters
from prefixbank.serving.samples import SAMPLES

if TYPE_CHECKING:
    from prefixbank.model_store.tasks.request import RequestParameters

Schema = dict[str, Any]


class FamilySchema(NamedTuple):
    """One family on the wire."""

    name: str
    """Of its schemas in the document."""
    parameters: type[RequestParameters]
    item: Schema
    """One input."""
    answer: Schema
    description: str
    """Of the answer."""
    example: object
    """An answer to the family's sample."""


def ref(name: str) -> Schema:
    """A schema of the document by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **limits: int) -> Schema:
    """A JSON array."""
    return {"type": "array", "items": items, **limits}


def record(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """A JSON object."""
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
_PLACE: Schema = {"type": "integer", "minimum": 0}
_FULL_TEXT: Schema = {"type": "string", "minLength": 1}

VALUES: Schema = {
    "Pair": record(("text", "text_pair"), text=TEXT, text_pair=TEXT),
    "Label": record(("label", "score"), label=TEXT, score=NUMBER),
    "Entity": record(
        ("score", "word"),
        entity_group=TEXT,
        entity=TEXT,
        index=INTEGER,
        score=NUMBER,
        word=TEXT,
        start=INTEGER,
        end=INTEGER,
    ),
    "Question": record(("question", "context"), question=_FULL_TEXT, context=_FULL_TEXT),
    "Span": record(("score", "start", "end", "answer"), score=NUMBER, start=_PLACE, end=_PLACE, answer=TEXT)
    | {"description": "characters of the context; start and end are 0 and the answer is empty where there is none"},
    "Premise": record(
        ("premise", "choices"),
        premise=_FULL_TEXT,
        choices=array(_FULL_TEXT, minItems=2, maxItems=MAX_CHOICES),
        question={"enum": [*CONNECTORS, None], "description": "puts because or so between the premise and a choice"},
    ),
    "Choice": record(("label", "index", "score"), label=TEXT, index=_PLACE, score=NUMBER)
    | {"description": "a choice, its place in the request, and its probability among the choices"},
    "Sentence": record(
        ("words", "predicates"),
        words=array(_FULL_TEXT, minItems=1),
        predicates=array(_PLACE, minItems=1, maxItems=MAX_PREDICATES),
    )
    | {"description": "a sentence as words, and the numbers of those whose arguments are wanted, from 0"},
    "Piece": record(("word", "start", "end"), word=TEXT, start=INTEGER, end=INTEGER)
    | {"description": "characters of the words joined by the delimiter"},
    "Predicate": record(("index", "word", "start", "end"), index=_PLACE, word=TEXT, start=INTEGER, end=INTEGER),
    "Argument": record(
        ("role", "score", "word", "start", "end"),
        role=TEXT,
        score=NUMBER,
        word=TEXT,
        start=INTEGER,
        end=INTEGER,
        parts=array(ref("Piece")) | {"description": "the pieces of an argument that is torn; absent otherwise"},
    ),
    "Frame": record(("predicate", "arguments"), predicate=ref("Predicate"), arguments=array(ref("Argument"))),
}
"""What inputs and answers are made of."""

FAMILIES: dict[TaskFamily, FamilySchema] = {
    TaskFamily.TEXT_CLASSIFICATION: FamilySchema(
        "TextClassification",
        TextClassificationParameters,
        {"anyOf": [TEXT, ref("Pair"), array(TEXT, minItems=2, maxItems=2)]},
        array(array(ref("Label"))),
        "a list per input, best label first; one input gives a list of one",
        [[{"label": "order_status", "score": 0.94}, {"label": "talk_to_human", "score": 0.06}]],
    ),
    TaskFamily.TOKEN_CLASSIFICATION: FamilySchema(
        "TokenClassification",
        TokenClassificationParameters,
        {"anyOf": [TEXT, array(TEXT)]},
        {"anyOf": [array(ref("Entity")), array(array(ref("Entity")))]},
        "entities in the text's order; a list per input where the request brought a list",
        [{"entity_group": "PER", "score": 0.99, "word": "Maria Lopez", "start": 0, "end": 11}],
    ),
    TaskFamily.QUESTION_ANSWERING: FamilySchema(
        "QuestionAnswering",
        QuestionAnsweringParameters,
        ref("Question"),
        {"anyOf": [ref("Span"), array(ref("Span")), array(array(ref("Span")))]},
        "the best answer, or a list of them where top_k is more than 1; of a list of questions a list of such",
        {"score": 0.87, "start": 51, "end": 55, "answer": "Oslo"},
    ),
    TaskFamily.MULTIPLE_CHOICE: FamilySchema(
        "MultipleChoice",
        MultipleChoiceParameters,
        ref("Premise"),
        {"anyOf": [array(ref("Choice")), array(array(ref("Choice")))]},
        "the choices, most probable first; a list per premise where the request brought a list",
        [
            {"label": "The customer asked for a refund.", "index": 0, "score": 0.9},
            {"label": "The customer moved to Oslo.", "index": 1, "score": 0.1},
        ],
    ),
    TaskFamily.SEMANTIC_ROLES: FamilySchema(
        "SemanticRoles",
        SemanticRolesParameters,
        ref("Sentence"),
        {"anyOf": [array(ref("Frame")), array(array(ref("Frame")))]},
        "a frame per predicate, in their order; a list per sentence where the request brought a list",
        [
            {
                "predicate": {"index": 2, "word": "flew", "start": 12, "end": 16},
                "arguments": [
                    {"role": "ARG0", "score": 0.98, "word": "Maria Lopez", "start": 0, "end": 11},
                    {"role": "ARGM-TMP", "score": 0.95, "word": "on Monday", "start": 37, "end": 46},
                ],
            }
        ],
    ),
}


def schemas() -> Schema:
    """The schemas of every family: its parameters, its request and its answer."""
    named: Schema = dict(VALUES)
    for family, schema in FAMILIES.items():
        named[f"{schema.name}Parameters"] = _without_titles(schema.parameters.model_json_schema())
        named[f"{schema.name}Request"] = record(
            ("inputs",),
            inputs={"anyOf": [schema.item, array(schema.item)]},
            parameters=ref(f"{schema.name}Parameters"),
            options={"type": "object", "description": "accepted for older clients, and without effect"},
        ) | {"description": f"to a task of {family}"}
        named[f"{schema.name}Answer"] = schema.answer | {"description": schema.description}
    return named


def any_of(suffix: str) -> Schema:
    """The requests, or the answers, of all families: which one it is depends on the task."""
    return {"anyOf": [ref(f"{schema.name}{suffix}") for schema in FAMILIES.values()]}


def request_examples() -> Schema:
    """A request for each family, by its tag."""
    return {family.value: {"value": {"inputs": SAMPLES[family].single}} for family in FAMILIES}


def answer_examples() -> Schema:
    """Its answer."""
    return {family.value: {"value": schema.example} for family, schema in FAMILIES.items()}


def _without_titles(schema: Any) -> Any:
    """Titles that repeat the field's name say nothing."""
    if isinstance(schema, dict):
        return {key: _without_titles(value) for key, value in schema.items() if key != "title"}
    return [_without_titles(value) for value in schema] if isinstance(schema, list) else schema
