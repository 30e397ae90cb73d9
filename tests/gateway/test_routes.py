from __future__ import annotations

import pytest

from varvel.apps.model import AppId
from varvel.gateway.routes import Target, parse, request_of, without_fal_parameters

ID = "01a20912-38f8-722e-b3eb-70807ba1bdeb"


@pytest.mark.parametrize(
    ("path", "app", "inside", "prefix"),
    [
        (b"me/ocr", AppId("me", "ocr"), "/", "me/ocr"),
        (b"me/ocr/", AppId("me", "ocr"), "/", "me/ocr"),
        (b"me/ocr/fast/now", AppId("me", "ocr"), "/fast/now", "me/ocr"),
        (b"me/ocr--staging/x", AppId("me", "ocr--staging"), "/x", "me/ocr--staging"),
        (b"workflows/me/flow/x", AppId("me", "flow"), "/x", "workflows/me/flow"),
        (b"comfy/me/flow", AppId("me", "flow"), "/", "comfy/me/flow"),
        (b"123-ocr", AppId("123", "ocr"), "/", "123/ocr"),
        (b"123-ocr/sub", AppId("123", "ocr"), "/sub", "123/ocr"),
        (b"me/ocr//x", AppId("me", "ocr"), "//x", "me/ocr"),
        (b"me/ocr/a%2Fb", AppId("me", "ocr"), "/a%2Fb", "me/ocr"),
        (b"my-self/ocr", AppId("my-self", "ocr"), "/", "my-self/ocr"),
    ],
)
def test_a_path_names_an_app_and_a_path_inside_it(path: bytes, app: AppId, inside: str, prefix: str) -> None:
    assert parse(path) == Target(app, inside, prefix)


@pytest.mark.parametrize("path", [b"", b"me", b"me/", b"/ocr", b"workflows/me", b"workflows", b"123-"])
def test_a_path_without_an_app_names_nothing(path: bytes) -> None:
    assert parse(path) is None


@pytest.mark.parametrize(
    ("rest", "operation"),
    [
        (f"requests/{ID}", "result"),
        (f"requests/{ID}/", "result"),
        (f"requests/{ID}/response", "result"),
        (f"requests/{ID}/status", "status"),
        (f"requests/{ID}/status/", "status"),
        (f"requests/{ID}/status/stream", "stream"),
        (f"fast/now/requests/{ID}/status", "status"),
        (f"fast/requests/{ID}", "result"),
        ("requests/not-an-id/status", "status"),
    ],
)
def test_status_and_result_are_found_below_the_app_and_below_any_of_its_paths(rest: str, operation: str) -> None:
    target = parse(f"workflows/me/flow/{rest}".encode())
    assert target is not None
    asked = request_of(target, "GET")
    assert asked is not None
    assert (asked.app, asked.prefix, asked.operation) == (AppId("me", "flow"), "workflows/me/flow", operation)


def test_cancel_is_a_put_and_nothing_else() -> None:
    target = parse(f"me/ocr/requests/{ID}/cancel".encode())
    assert target is not None
    asked = request_of(target, "PUT")
    assert asked is not None
    assert asked.operation == "cancel"
    assert request_of(target, "GET") is None


def test_a_post_submits_even_to_a_route_that_looks_like_a_request() -> None:
    target = parse(f"me/ocr/requests/{ID}".encode())
    assert target is not None
    assert request_of(target, "POST") is None


def test_the_app_does_not_see_our_own_parameters() -> None:
    assert without_fal_parameters(b"a=1&fal_webhook=x&b=2&fal_max_queue_length=3") == b"a=1&b=2"
    assert without_fal_parameters(b"a=fal_x") == b"a=fal_x"
