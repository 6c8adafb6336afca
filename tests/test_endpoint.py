from __future__ import annotations

import pytest

from flaskchat.config import load
from flaskchat.errors import ConfigurationError, ModelBusy, ModelRefused
from flaskchat.providers.anthropic import AnthropicProvider
from flaskchat.providers.endpoint import Endpoint, refusal, retry_after
from flaskchat.providers.openai import OpenAIProvider


def endpoint(url="https://host.test/v1", *, plain_http=True, **headers):
    return Endpoint(
        url, "/chat", headers, setting="FLASKCHAT_OPENAI_BASE_URL", key_setting="FLASKCHAT_OPENAI_API_KEY",
        connect_timeout=1.0, first_byte_timeout=1.0, plain_http=plain_http,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("https://host.test/v1", "/v1/chat", "host.test"),
        ("https://host.test/v1/", "/v1/chat", "host.test"),
        ("https://host.test", "/chat", "host.test"),
        (" http://host.test:80 ", "/chat", "host.test"),
        ("http://host.test:8080/a b/ü", "/a%20b/%C3%BC/chat", "host.test:8080"),
        ("http://host.test/a%20b", "/a%20b/chat", "host.test"),
        ("https://host.test:443/", "/chat", "host.test"),
        ("https://host.test/v1?api-version=1&x=a b", "/v1/chat?api-version=1&x=a%20b", "host.test"),
        ("http://[::1]:11434/v1", "/v1/chat", "[::1]:11434"),
        ("http://bücher.test/", "/chat", "xn--bcher-kva.test"),
        ("HTTP://Host.Test/", "/chat", "host.test"),
        ("http://ollama:11434/v1", "/v1/chat", "ollama:11434"),
    ],
)
def test_an_address_becomes_a_request_line_and_a_host(url, line, host):
    assert endpoint(url).head(0).decode().startswith(f"POST {line} HTTP/1.1\r\nHost: {host}\r\n")


@pytest.mark.parametrize(
    "url",
    ["", "host.test", "ftp://host.test", "http://", "http://host:port/", "http://host:99999/", "http://a b/", "//host/",
     "http://host.test/#x", "http://ho\u0000st/", "http://" + "a" * 70 + ".test/"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_a_configuration_error_that_names_key_and_value(url):
    with pytest.raises(ConfigurationError, match="FLASKCHAT_OPENAI_BASE_URL=") as caught:
        endpoint(url)
    assert repr(url) in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError) as caught:
        endpoint("https://me:hunter2@host.test/")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host.test/v1?api_key=hunter2", "ftp://host.test/v1?a=b&token=hunter2"])
def test_a_key_in_the_query_of_an_address_that_is_refused_is_not_shown(url):
    with pytest.raises(ConfigurationError, match=r"host\.test") as caught:
        endpoint(url, plain_http=False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "schlüssel", "", "a\0b"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(value):
    with pytest.raises(ConfigurationError) as caught:
        endpoint(authorization=value)
    assert not value or value not in str(caught.value)


def test_every_request_says_what_it_accepts_and_that_it_is_the_only_one():
    lines = endpoint().head(5).decode().split("\r\n")
    assert "Accept: text/event-stream, application/json" in lines
    assert "Accept-Encoding: identity" in lines
    assert "Connection: close" in lines
    assert "User-Agent: flaskchat" in lines
    assert lines[-3:] == ["Content-Length: 5", "", ""]


def test_secrets_are_taken_out_of_what_a_server_echoes():
    assert endpoint(authorization="Bearer sk-12345678").without_secrets("no: sk-12345678!") == "no: ***!"


def test_the_default_tls_context_verifies():
    context = endpoint().context()
    assert context.check_hostname
    assert context is not endpoint().context()
    assert context.cert_store_stats()["x509_ca"] > 50


def headers(**values):
    return lambda name: values.get(name.decode().replace("-", "_"), "")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 529])
def test_a_busy_server_may_be_asked_again(status):
    error = refusal(endpoint(), status, headers(retry_after="7"), "try later")
    assert isinstance(error, ModelBusy)
    assert error.retry_after == 7
    assert "try later" in error.detail


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 403, 404, 405, 413, 422, 501, 505])
def test_a_refusal_is_final(status):
    error = refusal(endpoint(), status, headers(location="https://elsewhere.test/"), "no")
    assert isinstance(error, ModelRefused)
    assert not error.retryable
    assert ("elsewhere" in error.detail) == (status < 400)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, None),
        ({"retry_after": "0"}, 0),
        ({"retry_after": "2.5"}, 2.5),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "1e9"}, None),
        ({"retry_after": "9" * 400}, None),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after_ms": "x", "retry_after": "9"}, 9),
        ({"retry_after": "Thu, 01 Jan 1970 00:20:00 GMT"}, 200),
        ({"retry_after": "Thu, 01 Jan 1970 00:20:00 +0000"}, 200),
        ({"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry_after": "Thu, 01 Jan 99999 00:00:00 GMT"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_milliseconds_or_a_date(given, seconds):
    assert retry_after(headers(**given), now=1000.0) == seconds


@pytest.mark.parametrize(
    "url",
    ["http://host.test/v1", "http://192.168.1.5:11434/v1", "http://ollama:11434/v1", "http://127.0.0.1.evil.test/",
     "http://localhost.evil.test/", "http://[::ffff:10.0.0.1]/", "http://[fe80::1]/", "http://0.0.0.0:8080/"],
)  # fmt: skip
def test_http_to_another_machine_is_refused_unless_it_is_asked_for(url):
    with pytest.raises(ConfigurationError, match=r"FLASKCHAT_OPENAI_BASE_URL=.* expected https.*FLASKCHAT_PLAIN_HTTP"):
        endpoint(url, plain_http=False)
    assert not endpoint(url).secure


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8080/v1", "http://127.8.9.1/", "http://[::1]:11434/", "http://localhost:1234/v1",
     "http://LOCALHOST./v1", "http://models.localhost/v1", "https://host.test/v1"],
)  # fmt: skip
def test_http_to_this_machine_and_https_to_any_are_taken(url):
    endpoint(url, plain_http=False)


def test_what_a_server_said_is_not_logged_unless_that_is_asked_for():
    body = '{"error": {"message": "you wrote: hunter2", "type": "invalid_request_error", "code": "hunter2"}}'
    error = refusal(endpoint(), 400, lambda name: "", body)
    assert "hunter2" in error.detail
    assert "hunter2" in error.logged(words=True)
    logged = error.logged(words=False)
    assert "hunter2" not in logged
    assert "400, invalid_request_error" in logged, "its kind is one word that repeats nobody's"
    assert "FLASKCHAT_LOG_MODEL_ERRORS" in logged


@pytest.mark.parametrize("provider", [OpenAIProvider, AnthropicProvider])
@pytest.mark.parametrize(
    ("status", "named"),
    [(400, []), (401, ["API_KEY"]), (403, ["API_KEY"]), (404, ["the model's name", "BASE_URL"]), (429, [])],
)
def test_the_operator_is_told_which_setting_to_look_at(provider, status, named):
    prefix = f"FLASKCHAT_{provider.name.upper()}_"
    keys = {"FLASKCHAT_OPENAI_API_KEY": "sk-hunter2", "FLASKCHAT_ANTHROPIC_API_KEY": "sk-hunter2"}
    logged = refusal(provider(load(keys))._endpoint, status, lambda name: "", "Bad key").logged(words=False)
    assert f": {status}" in logged
    assert "hunter2" not in logged
    assert ("look at" in logged) == bool(named)
    for word in named:
        assert (prefix + word if word.isupper() else word) in logged


def test_a_date_is_counted_from_the_answer_s_own_clock_whatever_ours_says():
    given = {"retry_after": "Thu, 01 Jan 1970 00:17:10 GMT", "date": "Thu, 01 Jan 1970 00:16:40 GMT"}
    assert retry_after(headers(**given)) == 30
    assert retry_after(headers(**{**given, "date": "some day"})) == 0
