"""The extension: configuration -> state -> blueprint, template function, commands, signals."""

from __future__ import annotations

import atexit
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from blinker import NamedSignal
from flask import Flask
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from . import cli, config, server, signals, tasks
from .errors import ConfigurationError
from .feed import Feed
from .log import link
from .providers.callable import Function
from .providers.registry import Registry
from .runtime import Lazy, Runtime
from .security import Identity, owner_of
from .state import KEY, State, current_state
from .store import kinds
from .views import make_blueprint, page

logger = logging.getLogger("flaskchat")

F = TypeVar("F", bound=Function)

HANDLER_PATIENCE = 2.0
"""Seconds that handlers of signals have left when the chat is closed."""


class FlaskChat:
    """Streaming chat for a Flask application.

        chat = FlaskChat(app)

    or, with an application factory, `chat = FlaskChat()` and later `chat.init_app(app)`.
    """

    def __init__(
        self, app: Flask | None = None, *, url_prefix: str | None = None, identity: Callable[[], object] | None = None
    ) -> None:
        """:param url_prefix: the path under which the chat is mounted; the setting FLASKCHAT_URL_PREFIX otherwise.
        :param identity: called within a request; returns the id of the signed-in user, or None for nobody (401).
            Absent: Flask-Login's `current_user` where it is set up and signed in, else a signed cookie.
        """
        self._url_prefix = url_prefix
        self._identity = identity
        # Kept here until an application comes, as a Blueprint keeps its routes; what belongs to one application is in
        # `app.extensions["flaskchat"]`.
        self._models: dict[str, Function] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Mount the chat in `app`. Opens nothing: sockets, files and the database come with the first request.

        Reads every `FLASKCHAT_*` key of `app.config` (`flask chat settings` lists them), and SECRET_KEY.

        :raises ConfigurationError: a setting is wrong; gunicorn's sync worker serves this process; `app` has a chat.
        """
        if KEY in app.extensions:
            raise ConfigurationError(
                "this application has a FlaskChat already. Call init_app once per application, or mount a second "
                "chat in an application of its own (werkzeug.middleware.dispatcher)."
            )
        worker = server.gunicorn_worker()
        if worker is not None:
            server.refuse_sync(worker)
        given = {} if self._url_prefix is None else {"FLASKCHAT_URL_PREFIX": self._url_prefix}
        settings = config.load({**app.config, **given})
        config.warn_of_unknown(app.config)
        registry = Registry(settings, self._models, context=app.app_context)
        for words in registry.without_key():
            logger.warning("%s", words)
        url = settings.database_url or f"sqlite:///{Path(app.instance_path) / 'flaskchat.sqlite3'}"
        kinds.load(url)
        try:
            make_url(url)
        except (ArgumentError, ValueError):
            shown = config.without_passwords(repr(url))
            raise ConfigurationError(
                f"FLASKCHAT_DATABASE_URL={shown}: expected an SQLAlchemy URL such as 'sqlite:////var/lib/chat.sqlite3'"
            ) from None

        if settings.redis_url is not None:
            link.where(settings.redis_url)  # also loads redis-py now, and not under the first request

        herald = Herald(app)
        identity = Identity(app, self._identity, required=settings.identity_required)

        def open_runtime() -> Runtime:
            chosen = registry.default()  # complains here, where all models are registered, and not with a message
            logger.info("flaskchat answers with %s", chosen.id)
            if words := registry.taken_name():
                logger.warning("%s", words)
            runtime = Runtime(settings, url, registry, identity.still)
            runtime.pump.on_ended = lambda feed: herald.tell(signals.run_ended, feed)
            runtime.runs.on_started = lambda feed: herald.tell(signals.run_started, feed)
            atexit.register(herald.close)  # runs after the runtime's own, which is registered later
            return runtime

        app.register_blueprint(make_blueprint(settings.url_prefix))
        app.jinja_env.globals.setdefault("flaskchat", page.widget)
        cli.add(app.cli)
        app.extensions[KEY] = State(
            app=app,
            settings=settings,
            registry=registry,
            identity=identity,
            lazy=Lazy(open_runtime),
            database_url=url,
            on_close=herald.close,
        )

    def model(self, name: str) -> Callable[[F], F]:
        """Register a model: a callable that takes a `Request` and returns an iterable of strings, such as a generator.

        :param name: by which it is asked for; letters, digits and . _ -
        :raises ConfigurationError: the name is taken or not a name; the function is asynchronous.
        """
        Registry.check_name(name)  # here, so that `@chat.model` without a name is told at once

        def register(function: F) -> F:
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise ConfigurationError(f"the model {name!r} is asynchronous: expected a plain generator of strings")
            before = self._models.get(name, function)
            # An application factory that is called again defines the same function again; that is no second model.
            if before is not function and getattr(before, "__code__", 0) is not getattr(function, "__code__", 1):
                raise ConfigurationError(f"the model {name!r} is registered already")
            self._models[name] = function
            return function

        return register


    @staticmethod
    def sign_out(user: object) -> None:
        """End a user's streams now, on all workers; within the application's context.

        Needed only where a logout neither changes Flask's session nor what the identity callable says about the old
        request: a token that is taken back, say, or a logout at another service.

        :param user: as the identity callable or Flask-Login names them.
        :raises RequestError: the database could not be written, so other workers were not told.
        """
        current_state().runtime.readers.sign_out(owner_of(user))


class Herald:
    """Sends the signals about runs, each in a task of its own: a handler may wait, and the tick must not."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._telling: set[tasks.Task] = set()

    def tell(self, signal: NamedSignal, feed: Feed) -> None:
        """Send a signal about a run, if anybody listens."""
        if not signal.has_receivers_for(self._app):
            return
        begun, terminal = feed.begun, feed.terminal
        fields: dict[str, Any] = {
            "run_id": begun.run_id,
            "conversation_id": begun.conversation_id,
            "owner": begun.owner,
            "model": begun.model,
        }
        if terminal is not None:
            fields |= {"state": terminal.event, "usage": getattr(terminal, "usage", None)}
        for task in tuple(self._telling):
            if not task.is_alive():
                self._telling.discard(task)
        self._telling.add(tasks.spawn(self._send, signal, fields, name="flaskchat-signal"))

    def _send(self, signal: NamedSignal, fields: dict[str, Any]) -> None:
        try:
            with self._app.app_context():
                signal.send(self._app, **fields)
        except Exception:
            logger.exception("a handler of the signal %s failed", signal.name)

    def close(self) -> None:
        """Let the handlers finish: what ended with the worker is told like everything else."""
        atexit.unregister(self.close)
        by = time.monotonic() + HANDLER_PATIENCE
        for task in tuple(self._telling):
            task.join(max(0.0, by - time.monotonic()))
            self._telling.discard(task)
