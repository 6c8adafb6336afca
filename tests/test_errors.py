"""The codes of errors: each class names those that it is raised with, for whoever lists them."""

from __future__ import annotations

import ast

import pytest

from flaskchat import errors
from flaskchat.errors import ModelError, RequestError
from tests.conftest import ROOT

KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
REQUESTS = {name: kind for name, kind in KINDS.items() if issubclass(kind, RequestError)}


def test_each_error_of_a_request_is_raised_with_the_codes_that_it_names() -> None:
    raised: dict[str, set[str]] = {}
    for path in (ROOT / "flaskchat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func).rpartition(".")[2]) in REQUESTS:
                given = [ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "code"]
                raised.setdefault(name, set()).update(given or [REQUESTS[name].code])
    assert len(raised) > 10
    assert raised == {name: set(REQUESTS[name].codes or [REQUESTS[name].code]) for name in raised}


def test_all_codes_are_told_with_their_status() -> None:
    told = errors.problem_codes()
    for kind in REQUESTS.values():
        assert set(kind.codes or [kind.code]) <= set(told[kind.status])
    assert sum(map(len, told.values())) == len({code for codes in told.values() for code in codes}), "each once"
    codes = [kind.code for kind in KINDS.values() if issubclass(kind, ModelError)]
    assert errors.model_codes() == list(dict.fromkeys(codes))


def test_a_hosts_own_errors_are_its_own() -> None:
    class Broke(ModelError):
        code = "no_money_left"

    class Closed(RequestError):
        code, status = "closed_on_sundays", 418

    assert Broke.code not in errors.model_codes()
    assert Closed.status not in errors.problem_codes()


def broken(cause: Exception, context: Exception) -> None:
    try:
        raise context
    except ValueError:
        raise ModelError("it broke") from cause


class Strict(Exception):
    """One of a library that allows nothing to be set, as a frozen dataclass."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def test_an_error_is_made_bare_also_where_nothing_can_be_set_on_what_led_to_it() -> None:
    cause = Strict("no index")
    with pytest.raises(ModelError) as raised:
        broken(cause, ValueError("before"))
    assert raised.value.bare().__cause__ is None
    assert cause.__traceback__ is None


def test_a_bare_error_keeps_nothing_of_what_led_to_it() -> None:
    cause, context = OSError("cut"), ValueError("before")
    with pytest.raises(OSError, match="cut"):
        raise cause
    with pytest.raises(ModelError) as raised:
        broken(cause, context)
    error = raised.value
    led = [error, cause, context]
    assert (error.__cause__, error.__context__) == (cause, context)
    assert all(each.__traceback__ is not None for each in led)
    assert error.bare(alone=True) is error
    assert error.__traceback__ is error.__cause__ is error.__context__ is None
    assert cause.__traceback__ is not None, "alone, what led to it is as it was"
    error.__cause__, error.__context__ = cause, context
    assert error.bare() is error
    assert error.logged(words=True) == "it broke"
    assert all(each.__traceback__ is each.__cause__ is each.__context__ is None for each in led)
