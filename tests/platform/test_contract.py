"""The page that the server serves about itself, against the facts of the contract (`contract.json`).

`VARVEL_CONTRACT` may name the whole OpenAPI document that those facts were taken from; then they are checked too.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from varvel.platform import api
from varvel.settings import Settings

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("contract.json").read_text())
OPERATIONS: dict[str, Any] = FACTS["operations"]
Schema = dict[str, Any]


class Nothing:
    """Stands for parts that are only passed on while the page is made."""

    settings = Settings()

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *arguments: object, **options: object) -> Nothing:
        return self


@cache
def page() -> dict[str, Any]:
    return api.describe(api.build(cast(Any, Nothing())))


def operation(name: str) -> dict[str, Any]:
    method, path = name.split(" ")
    return cast(dict[str, Any], page()["paths"][path][method.lower()])


def plain(schema: Schema) -> Schema:
    """References followed, and the ways of writing null made one."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return plain(page()["components"]["schemas"][name])
    if len(schema.get("allOf", ())) == 1:
        return plain(schema["allOf"][0])
    return schema


def given(schema: Schema) -> Schema:
    """A parameter's schema when it is there: absent is not null."""
    schema = plain(schema)
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    return {**schema, **plain(options[0])} if len(options) == 1 else schema


def kinds(schema: Schema) -> set[str]:
    """Types that a value may have; empty for any. An integer is a number too."""
    schema = plain(schema)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return set().union(*(kinds(option) for option in options))
    if "const" in schema or "enum" in schema:
        return {schema.get("type", "string")} if isinstance(schema.get("type", "string"), str) else set(schema["type"])
    kind = schema.get("type", [])
    return {kind} if isinstance(kind, str) else set(kind)


def choices(schema: Schema) -> set[str]:
    schema = plain(schema)
    if "const" in schema:
        return {schema["const"]}
    found = set(schema.get("enum", ()))
    for option in schema.get("anyOf", ()):
        found |= choices(option)
    return found


def the(schema: Schema, kind: str) -> Schema | None:
    """The part of a schema that holds objects (or arrays)."""
    schema = plain(schema)
    for option in schema.get("anyOf", [schema]):
        option = plain(option)
        if kind in kinds(option):
            return option
    return None


def misses(theirs: Schema, ours: Schema, at: str) -> list[str]:
    """How a reply to our schema could be none to theirs."""
    found = []
    allowed, made = kinds(theirs), kinds(ours)
    if "number" in allowed:
        allowed = allowed | {"integer"}
    if allowed and not made:
        found.append(f"{at}: may be anything, must be {sorted(allowed)}")
    if allowed and made - allowed:
        found.append(f"{at}: may be {sorted(made - allowed)}, must be {sorted(allowed)}")
    if choices(theirs) and not choices(ours) <= choices(theirs):
        found.append(f"{at}: may be {sorted(choices(ours) - choices(theirs))}")
    if theirs.get("format") and "string" in made and theirs["format"] not in str(plain(ours)):
        found.append(f"{at}: has no format {theirs['format']}")
    their_array, our_array = the(theirs, "array"), the(ours, "array")
    if their_array is not None and our_array is not None:
        found += misses(their_array.get("items", {}), our_array.get("items", {}), f"{at}[]")
    their_object, our_object = the(theirs, "object"), the(ours, "object")
    if their_object is not None and our_object is not None and "properties" in their_object:
        found += _object_misses(their_object, our_object, at)
    return found


def _object_misses(theirs: Schema, ours: Schema, at: str) -> list[str]:
    found = []
    expected, made = theirs["properties"], ours.get("properties", {})
    if missing := set(expected) - set(made):
        found.append(f"{at}: lacks {sorted(missing)}")
    if theirs.get("additionalProperties") is False and (more := set(made) - set(expected)):
        found.append(f"{at}: has {sorted(more)}")
    if optional := set(theirs.get("required", ())) - set(ours.get("required", ())):
        found.append(f"{at}: may lack {sorted(optional)}")
    for name in sorted(set(expected) & set(made)):
        found += misses(expected[name], made[name], f"{at}.{name}")
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_of_the_contract_is_there_under_its_name_and_key(name: str) -> None:
    ours = operation(name)
    assert ours["operationId"] == OPERATIONS[name]["operation_id"]
    assert [next(iter(one)) for one in ours.get("security", [])] == OPERATIONS[name]["security"]
    assert ours["summary"]
    assert ours["description"]


DIFFERENT = {
    # Whoever asks for logs and says nothing of tracebacks is looking for them.
    ("traceback", "default"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_parameter_is_taken_as_the_contract_has_it(name: str) -> None:
    ours = {(item["name"], item["in"]): item for item in operation(name).get("parameters", [])}
    wrong = []
    for theirs in OPERATIONS[name]["parameters"]:
        item = ours.get((theirs["name"], theirs["in"]))
        if item is None:
            wrong.append(f"{theirs['name']}: is not there")
            continue
        expected, schema = theirs["schema"], given(item["schema"])
        if item.get("required", False) != theirs["required"]:
            wrong.append(f"{theirs['name']}: required is {item.get('required', False)}")
        if kinds(expected) - kinds(schema) - {"null"}:
            wrong.append(f"{theirs['name']}: takes no {sorted(kinds(expected) - kinds(schema))}")
        if not choices(expected) <= choices(schema) and choices(schema):
            wrong.append(f"{theirs['name']}: refuses {sorted(choices(expected) - choices(schema))}")
        wrong += [
            f"{theirs['name']}: {bound} is {schema.get(bound)!r}, must be {expected[bound]!r}"
            for bound in ("minimum", "maximum", "default")
            if bound in expected and (theirs["name"], bound) not in DIFFERENT and schema.get(bound) != expected[bound]
        ]
    assert not wrong


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_response_code_is_described_with_its_shape(name: str) -> None:
    ours = operation(name)["responses"]
    assert set(OPERATIONS[name]["responses"]) <= set(ours)
    wrong = []
    for code, reply in ours.items():
        if int(code) >= 400:
            schema = reply["content"]["application/json"]["schema"]
            wrong += misses(FACTS["error"], schema, code)
    for code, contents in OPERATIONS[name]["responses"].items():
        for kind, expected in contents.items():
            described = ours[code].get("content", {})
            if kind not in described:
                wrong.append(f"{code}: is not described as {kind}")
            elif expected:
                wrong += misses(expected, described[kind].get("schema", {}), code)
    assert not wrong


@pytest.mark.parametrize("name", [name for name, facts in OPERATIONS.items() if facts["body"]])
def test_every_body_of_the_contract_is_taken(name: str) -> None:
    theirs = OPERATIONS[name]["body"]
    ours = operation(name)["requestBody"]
    for kind, expected in theirs["content"].items():
        schema = ours["content"][kind]["schema"]
        assert kinds(expected) <= kinds(schema)
        found, wanted = the(schema, "object"), the(expected, "object")
        if found is not None and wanted is not None:
            assert set(wanted["properties"]) <= set(found["properties"])
            assert set(found.get("required", ())) <= set(wanted.get("required", ())) | {"file_upload"}


def test_no_operation_says_that_it_answers_422() -> None:
    codes = {code for item in page()["paths"].values() for one in item.values() for code in one["responses"]}
    assert "422" not in codes


def test_operations_have_names_of_their_own() -> None:
    named = [one["operationId"] for item in page()["paths"].values() for one in item.values()]
    assert len(named) == len(set(named))


@pytest.mark.skipif("VARVEL_CONTRACT" not in os.environ, reason="VARVEL_CONTRACT names no document")
def test_the_facts_are_those_of_the_contract() -> None:
    document = json.loads(Path(os.environ["VARVEL_CONTRACT"]).read_text())
    found = {
        f"{method.upper()} {path}": one for path, item in document["paths"].items() for method, one in item.items()
    }
    assert set(found) == set(OPERATIONS)
    for name, one in found.items():
        facts = OPERATIONS[name]
        assert sorted(facts["responses"]) == sorted(one["responses"])
        assert [item["name"] for item in facts["parameters"]] == [item["name"] for item in one.get("parameters", [])]
