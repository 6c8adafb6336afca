"""A Python model's reply comes to its own end, or the run's is an error, whatever is raised."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import pytest

from flaskchat.errors import ModelBusy, ModelError, ModelRaised
from flaskchat.models import Delta, Done, Event, Request
from flaskchat.providers.callable import Function, GeneratorSource


class Strict(Exception):
    """One of a library that allows nothing to be set, as a frozen dataclass."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")


def replied(function: Function) -> tuple[list[Event], ModelError | None]:
    source = GeneratorSource(function, Request(model="m", turns=[]), nullcontext)
    source.open()
    assert source._task is not None
    source._task.join(30)
    events: list[Event] = []
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            events += source.read()
        except ModelError as error:
            return events, error
        if Done() in events:
            return events, None
    raise AssertionError(events)


def failing(cause: Exception) -> Function:
    def model(request: Request) -> Any:
        yield "half of"
        try:
            raise cause
        except type(cause) as error:
            raise ModelBusy("The tool is away.") from error

    return model


def test_all_of_a_reply_is_done() -> None:
    assert replied(lambda request: ["one ", "two"]) == ([Delta("one two"), Done()], None)


def test_half_a_reply_is_an_error_also_where_nothing_can_be_set_on_what_led_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, error = replied(failing(Strict("search")))
    assert events == [Delta("half of")]
    assert isinstance(error, ModelBusy)
    assert "Strict: search" in caplog.text, "the cause is told once, for the operator"
    assert sum(record.exc_info is not None for record in caplog.records) == 1


def test_half_a_reply_is_an_error_also_where_it_cannot_be_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flaskchat.providers.callable.logger.exception", full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    for cause, kind in ((ValueError("x"), ModelBusy), (None, ModelRaised)):

        def model(request: Request, cause: Exception | None = cause) -> Any:
            if cause is not None:
                return failing(cause)(request)
            raise KeyError("x")

        assert isinstance(replied(model)[1], kind)


def test_what_led_to_an_error_is_left_to_the_host() -> None:
    """It may be shared by several runs, and shown later."""
    root = FileNotFoundError("index.bin")
    shared = RuntimeError("no index")
    shared.__cause__ = root
    error = replied(failing(shared))[1]
    assert error is not None
    assert error.__cause__ is error.__context__ is None
    assert shared.__cause__ is root
    assert shared.__traceback__ is not None
