"""Which models there are, which one answers, and why.

Owns the choice; knows nothing of conversations or HTTP requests. Python models may be registered at any time before
they are asked for, so names are looked up when they are needed and never copied.

`discover` is for the standalone application alone: an extension in somebody's project connects to nothing by itself.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from .. import tasks
from ..config import Settings, without_passwords
from ..errors import ConfigurationError, Invalid
from ..models import Request
from . import anthropic, names, openai
from .base import Provider
from .callable import CallableProvider, Function

GUIDE = "guide"


class Choice(NamedTuple):
    id: str
    why: str

    def __str__(self) -> str:
        return f"{self.id}, {self.why}"


def _guide(request: Request) -> Iterable[str]:
    # Imported when it is asked: its index and its documentation are of no use to whoever has a model.
    from .guide import guide

    return guide(request)


class Registry:
    """The models of one application.

    :param functions: Python models by name, as far as they are registered; more may come.
    :param context: entered around each Python model, in its task; an application's context, say.
    :raises ConfigurationError: a model id, an address or a key cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        functions: dict[str, Function] | None = None,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._settings = settings
        self._functions = {} if functions is None else functions
        self._providers: dict[str, Provider] = {
            "openai": openai.OpenAIProvider(settings),
            "anthropic": anthropic.AnthropicProvider(settings),
            names.PYTHON: CallableProvider(self._functions, context),
        }
        self._built_in = CallableProvider({GUIDE: _guide}, nullcontext)
        for key, value in (("MODEL", settings.model or ""), ("MODELS", settings.models)):
            for model_id in filter(None, map(str.strip, value.split(",") if key == "MODELS" else [value])):
                provider, name = names.split(model_id)
                if not name or (provider in ("", names.PYTHON) and not names.PYTHON_NAME.match(name)):
                    raise ConfigurationError(
                        f"FLASKCHAT_{key}={value!r}: expected `openai:name`, `anthropic:name` or a Python model's "
                        f"name, not {model_id!r}"
                    )

    @staticmethod
    def check_name(name: object) -> None:
        """:raises ConfigurationError: a Python model cannot have this name."""
        if not isinstance(name, str) or not names.PYTHON_NAME.match(name):
            raise ConfigurationError(f"the model name {name!r}: expected letters, digits and . _ - only")

    def default(self) -> Choice:
        """The model that answers where nobody picked one.

        :raises ConfigurationError: FLASKCHAT_MODEL names a Python model that is not registered.
        """
        settings = self._settings
        if settings.model:
            chosen = self._canonical(settings.model.strip())
            if not self._exists(chosen):
                known = ", ".join([*self._functions, GUIDE])
                raise ConfigurationError(
                    f"FLASKCHAT_MODEL={settings.model!r}: expected `openai:name`, `anthropic:name` or one of: {known}"
                )
            return Choice(chosen, "because FLASKCHAT_MODEL is set")
        for name in self._functions:
            return Choice(name, "because the application registered it")
        if settings.openai_api_key:
            return Choice(f"openai:{openai.DEFAULT_MODEL}", "because OPENAI_API_KEY is set")
        if settings.openai_base_url.rstrip("/") != openai.DEFAULT_BASE_URL:
            return Choice(f"openai:{openai.DEFAULT_MODEL}", "because OPENAI_BASE_URL is set")
        if settings.anthropic_api_key:
            return Choice(f"anthropic:{anthropic.DEFAULT_MODEL}", "because ANTHROPIC_API_KEY is set")
        return Choice(GUIDE, "because no model is connected")

    def without_key(self) -> list[str]:
        """What is wrong with the models that the operator named, where their provider's own address asks for a key and
        there is none: a sentence for each provider. A server of the operator's own may want none.
        """
        settings, found = self._settings, []
        for provider, key, base_url, usual in (
            ("openai", settings.openai_api_key, settings.openai_base_url, openai.DEFAULT_BASE_URL),
            ("anthropic", settings.anthropic_api_key, settings.anthropic_base_url, anthropic.DEFAULT_BASE_URL),
        ):
            if key or base_url.rstrip("/").removesuffix("/v1") != usual.removesuffix("/v1"):
                continue
            for model_id in names.configured(settings):
                if names.split(model_id)[0] == provider:
                    by = "FLASKCHAT_MODEL" if model_id == (settings.model or "").strip() else "FLASKCHAT_MODELS"
                    name = f"{provider.upper()}_API_KEY"
                    found.append(
                        f"{by} names {model_id}, and there is no key for it: set FLASKCHAT_{name}, which the "
                        f"standalone application also takes as {name}"
                    )
                    break
        return found

    def taken_name(self) -> str | None:
        """What to tell the operator where a server of theirs is asked for a model that nobody named, which it has only
        by chance. Of use once all Python models are registered, because one of them would answer.
        """
        settings = self._settings
        if settings.model or settings.openai_base_url.rstrip("/") == openai.DEFAULT_BASE_URL:
            return None
        chosen = self.default().id
        if chosen != f"openai:{openai.DEFAULT_MODEL}":
            return None
        shown = without_passwords(settings.openai_base_url)
        return (
            f"no model is named for {shown}, so it is asked for {openai.DEFAULT_MODEL}: set "
            "FLASKCHAT_MODEL=openai:name with a name that this server has (`flask chat models` shows what is set)"
        )

    def offered(self) -> list[str]:
        """The ids that can be picked, the default first: nothing else is ever asked, whatever a client sends."""
        configured = filter(self._exists, map(self._canonical, names.configured(self._settings)))
        return list(dict.fromkeys([self.default().id, *self._functions, *configured]))

    def items(self) -> list[dict[str, Any]]:
        """What `GET /models` lists."""
        items = []
        for number, model_id in enumerate(self.offered()):
            provider, name = names.split(model_id)
            items.append(
                {
                    "id": model_id,
                    "label": "Guide" if model_id == GUIDE and GUIDE not in self._functions else name,
                    "default": number == 0,
                    "capabilities": ["text", "reasoning", "stop"] if provider else ["text", "stop"],
                }
            )
        return items

    def pick(self, asked: str | None, before: str | None) -> str:
        """The id of the model that answers: the one asked for, else the conversation's, else the default.

        A conversation's model that is no longer offered gives way to the default.

        :raises Invalid: the one asked for is not offered.
        """
        offered = self.offered()
        if asked is not None:
            chosen = self._canonical(asked)
            if chosen not in offered:
                reason = "not offered; GET /models lists the models that are"
                raise Invalid("There is no such model.", errors=[{"field": "model", "reason": reason}])
            return chosen
        before = self._canonical(before) if before else ""
        return before if before in offered else offered[0]

    def resolve(self, model_id: str) -> tuple[Provider, str]:
        """The provider of a model id, and the model's name there.

        :raises Invalid: there is no such model (any more).
        """
        provider, name = names.split(model_id)
        if provider in names.HTTP_PROVIDERS:
            return self._providers[provider], name
        if name in self._functions:
            return self._providers[names.PYTHON], name
        if name == GUIDE:
            return self._built_in, name
        raise Invalid("There is no such model.", errors=[{"field": "model", "reason": "not registered"}])

    def _canonical(self, model_id: str) -> str:
        provider, name = names.split(model_id)
        return name if provider in ("", names.PYTHON) else model_id

    def _exists(self, model_id: str) -> bool:
        return bool(names.split(model_id)[0]) or model_id in self._functions or model_id == GUIDE


class Server(NamedTuple):
    """A model server that people run on their own machine, where it listens unless told otherwise."""

    name: str
    port: int


LOCAL_SERVERS = (Server("Ollama", 11434), Server("llama.cpp", 8080), Server("LM Studio", 1234))
NOT_A_CHAT_MODEL = re.compile(r"embed|rerank|whisper|\bbge\b|\btts\b", re.IGNORECASE)
MAX_LIST = 1 << 20


class Discovery(NamedTuple):
    """Settings for a model server that was found, and the words for why."""

    id: str
    openai_base_url: str
    why: str


def discover(timeout: float = 0.3, servers: Iterable[Server] = LOCAL_SERVERS) -> Discovery | None:
    """Look for a model server on this host. All are asked at once; the first in the list that answers is taken.

    :param timeout: seconds for all of them together.
    """
    servers = tuple(servers)
    found: dict[Server, str] = {}

    def probe(server: Server) -> None:
        model = _first_model(server, timeout)
        if model is not None:
            found[server] = model

    by = time.monotonic() + timeout
    probes = [tasks.spawn(probe, server, name="flaskchat-discover") for server in servers]
    for task in probes:
        task.join(max(0.0, by - time.monotonic()))
    for server in servers:
        if server in found:
            address = f"127.0.0.1:{server.port}"
            why = f"because {server.name} answers on {address}"
            return Discovery(f"openai:{found[server]}", f"http://{address}/v1", why)
    return None


def _first_model(server: Server, timeout: float) -> str | None:
    """The first chat model a server lists. Something else may listen there, so nothing about the answer is taken for
    granted; http.client knows neither proxies nor redirects."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request("GET", "/v1/models", headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            return None
        body = json.loads(response.read(MAX_LIST))
        ids = [model["id"] for model in body["data"] if isinstance(model["id"], str) and model["id"].strip()]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        connection.close()
    chat = [model for model in ids if not NOT_A_CHAT_MODEL.search(model)]
    return next(iter(chat or ids), None)
