"""The settings: casting, units, what an error says and what it never shows."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from flaskchat.config import PREFIX, SETTINGS, Setting, Settings, load, warn_of_unknown, without_passwords
from flaskchat.errors import ConfigurationError

SECRET = "sk-very-secret-0123456789"
NUMBERS = [setting for setting in SETTINGS if setting.type in (int, float)]


def named(setting: Setting) -> str:
    return setting.name


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_every_setting_says_what_it_is_for(setting: Setting) -> None:
    assert setting.help.endswith(".")
    assert setting.name == PREFIX + setting.field.upper()
    assert getattr(Settings(), setting.field) == setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_a_default_passes_its_own_check_also_as_text(setting: Setting) -> None:
    assert getattr(load({setting.name: setting.default}), setting.field) == setting.default
    if setting.default is not None:
        assert getattr(load({setting.name: str(setting.default)}), setting.field) == setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_none_means_the_same_as_absence(setting: Setting) -> None:
    assert load({setting.name: None}) == load({})


def test_values_are_cast_from_text() -> None:
    settings = load(
        {
            "FLASKCHAT_HEARTBEAT": "7",
            "FLASKCHAT_RETRIES": " 3 ",
            "FLASKCHAT_DRAIN": "0.5",
            "FLASKCHAT_MAX_STREAMS": "12",
            "FLASKCHAT_IDENTITY_REQUIRED": "Yes",
            "FLASKCHAT_MODEL": "openai:x",
        }
    )
    assert (settings.heartbeat, settings.retries, settings.drain, settings.max_streams) == (7.0, 3, 0.5, 12)
    assert (settings.identity_required, settings.model) == (True, "openai:x")
    assert isinstance(settings.heartbeat, float)


@pytest.mark.parametrize(
    ("value", "cast"),
    [(True, True), (False, False), ("1", True), ("0", False), ("true", True), ("OFF", False), (1, True), (0, False)],
)
def test_true_and_false_are_understood_in_the_usual_words(value: object, cast: bool) -> None:
    assert load({"FLASKCHAT_IDENTITY_REQUIRED": value}).identity_required is cast


def test_an_empty_text_is_the_absence_of_what_is_optional_and_the_root_for_the_prefix() -> None:
    settings = load({"FLASKCHAT_MODEL": "", "FLASKCHAT_MAX_STREAMS": "", "FLASKCHAT_URL_PREFIX": ""})
    assert (settings.model, settings.max_streams, settings.url_prefix) == (None, None, "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HEARTBEAT", "often", "HEARTBEAT='often': expected a number of seconds, at least 0.05, at most 1000000"),
        ("HEARTBEAT", "", "HEARTBEAT='': expected a number of seconds"),
        ("HEARTBEAT", "nan", "HEARTBEAT='nan'"),
        ("HEARTBEAT", float("inf"), "HEARTBEAT=inf"),
        ("RETRY", "1e9", "RETRY='1e9'"),
        ("HEARTBEAT", True, "HEARTBEAT=True: expected a number"),
        ("HEARTBEAT", [15], "HEARTBEAT=[15]: expected a number"),
        ("STALL_TIMEOUT", -1, "STALL_TIMEOUT=-1"),
        ("RETRIES", 1.5, "RETRIES=1.5: expected a whole number, at least 0"),
        ("RETRIES", "1.5", "RETRIES='1.5': expected a whole number"),
        ("MAX_BODY_BYTES", "1 MB", "MAX_BODY_BYTES='1 MB': expected a whole number of bytes, at least 1024"),
        ("MAX_BODY_BYTES", "9" * 5000, "MAX_BODY_BYTES="),
        ("SEND_BUFFER", 1 << 40, "at most 1073741824"),
        ("MAX_STREAMS", 0, "MAX_STREAMS=0: expected a whole number of streams, at least 1"),
        ("IDENTITY_REQUIRED", "maybe", "IDENTITY_REQUIRED='maybe': expected true or false"),
        ("IDENTITY_REQUIRED", 2, "IDENTITY_REQUIRED=2: expected true or false"),
        ("MODEL", 5, "MODEL=5: expected text"),
        ("MODELS", ["a", "b"], "MODELS=['a', 'b']: expected text"),
    ],
)
def test_an_error_names_key_value_and_what_was_expected(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({PREFIX + name: value})
    assert PREFIX + words in str(caught.value) or words in str(caught.value)
    assert str(caught.value).startswith(f"{PREFIX}{name}=")


@pytest.mark.parametrize("setting", NUMBERS, ids=named)
def test_no_number_may_be_infinite_negative_or_none_at_all(setting: Setting) -> None:
    for wrong in (float("inf"), float("nan"), "-1", "1e999", "x", "", b"\xff", object()):
        if wrong == "" and setting.optional:
            continue
        with pytest.raises(ConfigurationError, match=setting.name):
            load({setting.name: wrong})


@pytest.mark.parametrize(
    ("given", "prefix"),
    [("/chat", "/chat"), ("", ""), ("/", ""), ("/chat/", "/chat"), ("/a/b", "/a/b"), ("/~me/c-2.0", "/~me/c-2.0")],
)
def test_a_prefix_is_a_path_with_or_without_a_slash_at_its_end(given: str, prefix: str) -> None:
    assert load({"FLASKCHAT_URL_PREFIX": given}).url_prefix == prefix


@pytest.mark.parametrize(
    "given", ["chat", "/<int:n>", "/a?b", "/a#b", "/a b", "/a//b", "//evil.example", "/chat\n", "/ü", "http://h/chat"]
)
def test_a_prefix_that_is_no_path_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="FLASKCHAT_URL_PREFIX="):
        load({"FLASKCHAT_URL_PREFIX": given})


def test_a_secret_is_in_no_error_and_no_repr() -> None:
    secrets = [setting for setting in SETTINGS if setting.secret]
    assert {setting.field for setting in secrets} >= {"openai_api_key", "anthropic_api_key", "redis_url"}
    for setting in secrets:
        shown = repr(load({setting.name: SECRET}))
        assert SECRET not in shown
        assert f"{setting.field}=(set)" in shown
        with pytest.raises(ConfigurationError, match=r"=\(hidden\): expected text") as caught:
            load({setting.name: [SECRET]})
        assert SECRET not in str(caught.value)


def test_a_password_within_an_address_is_not_shown() -> None:
    for url in (
        "postgresql+psycopg://user:hunter2@db.example/chat",
        "postgresql://user:hunt@er2@db.example/chat",
        "postgresql://db.example/chat?user=me&password=hunter2",
        "redis://:hunter2@127.0.0.1/0",
    ):
        assert "hunter2" not in without_passwords(url)
        assert "er2" not in without_passwords(url)
        assert "hunter2" not in repr(load({"FLASKCHAT_DATABASE_URL": url}))
        assert "/chat" in without_passwords(url) or "/0" in without_passwords(url)
    assert without_passwords("sqlite:////var/lib/chat.sqlite3") == "sqlite:////var/lib/chat.sqlite3"
    with pytest.raises(ConfigurationError) as caught:
        load({"FLASKCHAT_DATABASE_URL": ["postgresql://user:hunter2@h/d"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "MAX_RUNS_PER_OWNER", "MAX_STREAMS_PER_OWNER", "MAX_STREAMS_PER_ADDRESS", "MESSAGES_PER_MINUTE",
        "CONNECTIONS_PER_SECOND",
    ],
)  # fmt: skip
def test_a_documented_limit_does_not_keep_the_application_from_starting(name: str) -> None:
    assert load({PREFIX + name: "5"})


def test_an_unknown_key_is_warned_about_with_the_nearest_name(caplog: pytest.LogCaptureFixture) -> None:
    config = {"FLASKCHAT_HARTBEAT": 1, "FLASKCHAT_ZZZ": SECRET, "FLASKCHAT_HEARTBEAT": 1, "OTHER": 1, 5: 1}
    assert load(config).heartbeat == 1.0  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "flaskchat"):
        warn_of_unknown(config)  # type: ignore[arg-type]
    first, second = caplog.messages
    assert "FLASKCHAT_HARTBEAT" in first
    assert "did you mean FLASKCHAT_HEARTBEAT?" in first
    assert "FLASKCHAT_ZZZ" in second
    assert "did you mean" not in second
    assert SECRET not in caplog.text


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        load({}).heartbeat = 1.0  # type: ignore[misc]


def test_what_is_named_as_a_secret_is_one() -> None:
    endings = ("_KEY", "_TOKEN", "_PASSWORD", "_REDIS_URL")
    named = {setting.name for setting in SETTINGS if setting.name.endswith(endings)}
    assert "FLASKCHAT_METRICS_TOKEN" in named
    assert named == {setting.name for setting in SETTINGS if setting.secret}
