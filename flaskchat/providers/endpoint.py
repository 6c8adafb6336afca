"""Where a provider's requests go: the checked address, the head of each request, TLS, and what a refusal means.

One per provider and worker. No I/O, except that the first use over TLS loads the certificates.
"""

from __future__ import annotations

import email.utils
import ipaddress
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping

import certifi

from ..config import without_passwords
from ..errors import ConfigurationError, ModelBusy, ModelError, ModelRefused

_BUSY = frozenset({408, 409, 425, 429})
_KINDS = re.compile(r'"(?:type|code)":\s*"([a-z][a-z0-9]*(?:_[a-z0-9]+){1,5})"')
"""As providers name the kinds of their errors: one word each, which repeats nobody's text."""
_FINAL_5XX = frozenset({501, 505, 511})
_VISIBLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?\Z")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+\Z")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?\Z")


class Endpoint:
    """:param base_url: as the operator gave it, `https://api.openai.com/v1`; a query stays at the end.
    :param path: what is added to it.
    :param headers: the provider's own; their values are secrets and never shown.
    :param setting: the setting the address came from, to name in errors.
    :param key_setting: that of the key.
    :param connect_timeout: seconds for name, connection and TLS together.
    :param first_byte_timeout: seconds from the start to the whole head of the answer.
    :param tls: the context to use in place of one with the system's and certifi's authorities.
    :param plain_http: whether http may leave this machine.
    :raises ConfigurationError: the address or a header's value cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        headers: Mapping[str, str],
        *,
        setting: str,
        key_setting: str,
        connect_timeout: float,
        first_byte_timeout: float,
        tls: ssl.SSLContext | None = None,
        plain_http: bool = False,
    ) -> None:
        try:
            url = urllib.parse.urlsplit(base_url.strip())
            host, port = url.hostname or "", url.port
            if url.scheme not in ("http", "https") or not host or url.username is not None or url.fragment:
                raise ValueError
            ascii_host = host if ":" in host else host.encode("idna").decode("ascii")
            if not _HOST.match(ascii_host):
                raise ValueError
        except ValueError:  # UnicodeError is one
            shown = "(hidden)" if "@" in base_url else without_passwords(repr(base_url))
            raise ConfigurationError(
                f"{setting}={shown}: expected an address such as 'https://host/v1', without a user name or fragment"
            ) from None
        self.secure = url.scheme == "https"
        if not (self.secure or plain_http or is_loopback(ascii_host)):
            raise ConfigurationError(
                f"{setting}={without_passwords(repr(base_url))}: expected https, because the key and what users write "
                "would cross the network for all to read. In a network of your own set FLASKCHAT_PLAIN_HTTP=true"
            )
        self.host = ascii_host
        self.port = port or (443 if self.secure else 80)
        self.connect_timeout = connect_timeout
        self.first_byte_timeout = first_byte_timeout
        self._tls = tls
        key = f"look at {key_setting}"
        self.hints = {401: key, 403: key, 404: f"look at the model's name and at {setting}"}
        """What the operator may do about a status; of the answer's own words the log has none."""
        for name, value in headers.items():
            if not _VISIBLE.match(value):
                raise ConfigurationError(f"{setting}: the value for {name} holds characters that no header can carry")
        self._secrets = [word for value in headers.values() for word in value.split() if len(word) >= 8]
        target = urllib.parse.quote(url.path.rstrip("/") + path, safe="/%:@!$&'()*+,;=~")
        if url.query:
            target += "?" + urllib.parse.quote(url.query, safe="/%:@!$&'()*+,;=~?")
        authority = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.secure else 80):
            authority += f":{self.port}"
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {authority}",
            *(f"{name}: {value}" for name, value in headers.items()),
            "User-Agent: flaskchat",
            "Accept: text/event-stream, application/json",
            "Accept-Encoding: identity",
            "Content-Type: application/json",
            "Connection: close",
            "Content-Length: ",
        ]
        self._head = "\r\n".join(lines).encode("ascii")
        self._name = f"{url.scheme}://{authority}"

    def __str__(self) -> str:
        return self._name

    def head(self, content_length: int) -> bytes:
        return b"%b%d\r\n\r\n" % (self._head, content_length)

    def context(self) -> ssl.SSLContext:
        """Made at the first use and then shared: loading the authorities takes tens of milliseconds."""
        if self._tls is None:
            context = ssl.create_default_context()  # the system's, or SSL_CERT_FILE's
            context.load_verify_locations(certifi.where())  # for systems that have none
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls

    def without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".").lower().rpartition(".")[2] == "localhost"  # RFC 6761, section 6.3


def refusal(endpoint: Endpoint, status: int, header: Callable[[bytes], str], excerpt: str) -> ModelError:
    """The error that a status other than 2xx stands for.

    :param header: gives a header's value by its name in lower case, or an empty text.
    :param excerpt: the beginning of the body, for the log.
    """
    if 300 <= status < 400:
        location = endpoint.without_secrets(header(b"location"))[:500]
        return ModelRefused(f"{endpoint}: redirects to {location!r} ({status}); redirects are not followed")
    kinds = "".join(f", {kind}" for kind in dict.fromkeys(_KINDS.findall(excerpt)))
    hint = f" ({endpoint.hints[status]})" if status in endpoint.hints else ""
    detail = f"{endpoint}: {status}{kinds}{hint}: "
    if status in _BUSY or (status >= 500 and status not in _FINAL_5XX):
        return ModelBusy(detail, said=excerpt, retry_after=retry_after(header))
    return ModelRefused(detail, said=excerpt)


def retry_after(header: Callable[[bytes], str], now: float | None = None) -> float | None:
    """Seconds from `retry-after-ms`, or from Retry-After as seconds or a date (RFC 9110, section 10.2.3).

    :param now: what a date is counted from; absent: the answer's own Date, since the two clocks need not agree.
    """
    value = header(b"retry-after-ms")
    if _NUMBER.match(value):
        return float(value) / 1000
    value = header(b"retry-after")
    if _NUMBER.match(value):
        return float(value)
    date = _moment(value)
    if date is None:
        return None
    if now is None:
        now = _moment(header(b"date"))
    return max(0.0, date - (time.time() if now is None else now))


def _moment(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
