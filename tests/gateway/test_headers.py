from __future__ import annotations

import pytest

from varvel.errors import InvalidRequest
from varvel.gateway.headers import read_answer, read_call, retry_config


def test_the_app_gets_custom_headers_and_none_of_ours() -> None:
    call = read_call(
        [
            (b"host", b"server"),
            (b"x-custom", b"1"),
            (b"authorization", b"Key a:b"),
            (b"connection", b"keep-alive"),
            (b"content-length", b"7"),
            (b"x-fal-request-id", b"forged"),
            (b"x-fal-caller-user-id", b"forged"),
            (b"x-forwarded-for", b"forged"),
            (b"x-fal-object-lifecycle-preference", b"{}"),
            (b"x-fal-cdn-token", b"token"),
        ]
    )
    assert call.forward == [
        (b"x-forwarded-host", b"server"),
        (b"x-custom", b"1"),
        (b"x-fal-object-lifecycle-preference", b"{}"),
        (b"x-fal-cdn-token", b"token"),
    ]
    assert (call.authorization, call.content_length) == ("Key a:b", 7)


def test_options_of_a_call_are_read() -> None:
    call = read_call(
        [
            (b"x-fal-runner-hint", b"lora"),
            (b"x-fal-queue-priority", b"low"),
            (b"x-fal-no-retry", b"yes"),
            (b"x-fal-store-io", b"0"),
            (b"x-fal-retry-config", b'{"timeout": {"retries": 2}}'),
        ]
    )
    assert (call.hint, call.low, call.no_retry, call.store_io) == ("lora", True, True, False)
    assert call.retry_config == {"timeout": 2}


def test_an_unknown_priority_is_normal() -> None:
    assert not read_call([(b"x-fal-queue-priority", b"high")]).low


def test_the_newer_name_of_the_start_timeout_wins() -> None:
    both = [(b"x-fal-request-start-timeout", b"5"), (b"x-fal-request-timeout", b"9")]
    assert read_call(both).start_timeout == 5
    assert read_call(both[::-1]).start_timeout == 5
    assert read_call(both[1:]).start_timeout == 9


@pytest.mark.parametrize("value", [b"", b"soon", b"0.1", b"-3", b"nan", b"inf"])
def test_a_start_timeout_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_call([(b"x-fal-request-timeout", value)])


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('{"timeout": {"retries": 2}, "server_error": {"retries": 99}}', {"timeout": 2, "server_error": 9}),
        ('{"timeout": 2}', None),
        ('{"weather": {"retries": 2}}', None),
        ("[]", None),
        ("{", None),
        ('{"timeout": {"retries": true}}', None),
        ('{"timeout": {"retries": -1}}', None),
    ],
)
def test_a_retry_config_that_makes_no_sense_is_ignored(value: str, read: dict[str, int] | None) -> None:
    assert retry_config(value) == read


def test_what_the_app_says_of_its_runner_stays_here() -> None:
    answer = read_answer(
        200,
        [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"content-length", b"3"),
            (b"x-fal-stop-runner", b"true"),
            (b"x-fal-runner-health-check", b"true"),
            (b"x-fal-runner-hints", b"a, b"),
            (b"x-fal-billable-units", b"2.5"),
            (b"x-fal-request-id", b"forged"),
            (b"x-fal-error-type", b"forged"),
            (b"x-fal-needs-retry", b"1"),
            (b"server", b"uvicorn"),
        ],
    )
    assert [name for name, _ in answer.forward] == [b"content-type", b"x-fal-runner-hints", b"x-fal-billable-units"]
    assert (answer.stop_runner, answer.health_check, answer.hints) == (True, True, ["a", "b"])
    assert (answer.units, answer.content_length, answer.streaming) == (2.5, 3, True)
    assert answer.needs_retry is None


@pytest.mark.parametrize(("status", "read"), [(503, True), (429, True), (400, None), (200, None)])
def test_needs_retry_counts_with_429_and_server_errors_only(status: int, read: bool | None) -> None:
    answer = read_answer(status, [(b"x-fal-needs-retry", b"1")])
    assert answer.needs_retry is read
    assert len(answer.forward) == (1 if read else 0)


@pytest.mark.parametrize("value", [b"many", b"-1", b"nan", b"inf", b""])
def test_units_that_are_no_number_are_no_units(value: bytes) -> None:
    answer = read_answer(200, [(b"x-fal-billable-units", value)])
    assert (answer.units, answer.forward) == (None, [])
