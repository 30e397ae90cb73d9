from __future__ import annotations

import pytest

from varvel.apps.errors import BadOptions, BadTarget
from varvel.apps.rules import (
    Options,
    Target,
    app_name,
    build_spec,
    default_name,
    kebab,
    parse_options,
    parse_target,
    scaling_of,
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("app.py", Target("app.py", None)),
        ("app.py:app", Target("app.py", "app")),
        ("app.py::Hello", Target("app.py", "Hello")),
        ("./deep/er/main.py:factory.app", Target("deep/er/main.py", "factory.app")),
    ],
)
def test_a_target_names_a_file_and_perhaps_an_app_in_it(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "app", "/etc/app.py", "../app.py", "a/../b.py", "a//b.py", "app.py:1x", "a\\b.py"]
)
def test_a_target_never_leads_out_of_the_folder(text: str) -> None:
    with pytest.raises(BadTarget):
        parse_target(text)


def test_an_app_without_a_name_is_called_after_its_file_or_its_folder() -> None:
    assert default_name(parse_target("ocr.py"), "work") == "ocr"
    assert default_name(parse_target("app.py"), "My Folder") == "my-folder"
    assert default_name(parse_target("src/reader/main.py"), "work") == "reader"
    assert kebab("MyApp") == "my-app"


def test_an_environment_becomes_part_of_the_name() -> None:
    assert app_name("ocr", "main") == "ocr"
    assert app_name("ocr", "staging") == "ocr--staging"


@pytest.mark.parametrize("name", ["", "Upper", "a b", "a--b", "-a", "a/b", "x" * 64])
def test_a_name_that_could_not_stand_in_a_url_is_refused(name: str) -> None:
    with pytest.raises(BadOptions):
        app_name(name, "main")


def test_options_of_a_deployment_beat_those_of_the_file() -> None:
    given = parse_options({"name": "a", "keep_alive": 5}, "flags")
    file = parse_options({"name": "b", "auth": "public", "keep_alive": 9, "max_concurrency": 2}, "file")
    merged = given.over(file)
    assert (merged.name, merged.auth, merged.scaling) == ("a", "public", {"keep_alive": 5.0, "max_concurrency": 2})


@pytest.mark.parametrize(
    "table",
    [
        {"no_such": 1},
        {"keep_alive": "long"},
        {"keep_alive": -1},
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"max_multiplexing": True},
        {"auth": "secret"},
        {"routes": ["x"]},
        {"routes": "x"},
        {"retry_config": {"rain": 1}},
        {"retry_config": {"timeout": 99}},
        {"skip_retry_conditions": ["rain"]},
        {"health_check": {"path": 3}},
        {"health_check": {"path": "/h", "x": 1}},
        {"env": {"A B": "x"}},
        {"env": {"A": 1}},
        {"num_gpus": -1},
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(table: dict[str, object]) -> None:
    with pytest.raises(BadOptions, match="file: "):
        parse_options(table, "file")


def test_hosted_spellings_of_settings_are_understood() -> None:
    options = parse_options(
        {
            "app_auth": "public",
            "machine_type": ["GPU-H100", "GPU-A100"],
            "retry_config": {"timeout": {"retries": 2}},
            "termination_grace_period_seconds": 20,
        },
        "file",
    )
    assert options.auth == "public"
    assert options.machine_type == "GPU-H100"
    assert options.retry_config == {"timeout": 2}
    assert options.scaling == {"termination_grace": 20.0}


def test_more_runners_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(BadOptions, match="min_concurrency 5 is more than max_concurrency 4"):
        scaling_of({"min_concurrency": 5})


def test_the_root_is_always_a_route() -> None:
    spec = build_spec(
        kind="asgi",
        target=Target("app.py", None),
        attribute="app",
        requirements=(),
        overrides=(),
        routes=("/turbo", "/"),
        options=Options(),
    )
    assert spec.routes == ("/", "/turbo")
    assert spec.auth_mode == "private"
