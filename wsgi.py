"""The standalone application, `wsgi:app`. The one module that reads the environment.

    FLASKCHAT_<SETTING>         goes into app.config unchanged; deploy/README.md lists them
    OPENAI_API_KEY  OPENAI_BASE_URL  ANTHROPIC_API_KEY      where FLASKCHAT_ has none
    FLASKCHAT_DATA              folder of the database and the kept key; ./instance beside this file
    SECRET_KEY                  or FLASKCHAT_SECRET_KEY; without one, the extension keeps a key in that folder
    <NAME>_FILE                 the file in which one of the secrets among these stands, as containers mount them
    FLASKCHAT_TRUSTED_PROXIES   how many proxies in front set X-Forwarded-*; none
    FLASKCHAT_IDENTITY_HEADER   the header in which such a proxy says who is signed in; none

Importing it opens no file or database, and no socket but those with which a model server is looked for on this host,
where nothing says which model answers. They are closed again at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flask import Flask, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from flaskchat import FlaskChat
from flaskchat.config import SETTINGS, load
from flaskchat.errors import ConfigurationError
from flaskchat.providers.registry import Registry, discover
from flaskchat.views.base import http_problem

ROOT = Path(__file__).resolve().parent
OWN = frozenset(
    {"FLASKCHAT_DATA", "FLASKCHAT_SECRET_KEY", "FLASKCHAT_TRUSTED_PROXIES", "FLASKCHAT_IDENTITY_HEADER"}
)
SECRETS = (
    "SECRET_KEY", "FLASKCHAT_SECRET_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "FLASKCHAT_DATABASE_URL",
    *(setting.name for setting in SETTINGS if setting.secret),
)  # fmt: skip
USUAL_NAMES = {
    "OPENAI_API_KEY": "FLASKCHAT_OPENAI_API_KEY",
    "OPENAI_BASE_URL": "FLASKCHAT_OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY": "FLASKCHAT_ANTHROPIC_API_KEY",
}
BOOT_FAILED = 3
"""The status with which gunicorn's workers say that none of them can start, and another need not try."""
PROBE = 0.5
"""Seconds that each model server on this host has to answer at start."""

log = logging.getLogger("flaskchat")


class Answering(NamedTuple):
    """Which model answers, why, and the settings that it needs beside those that are there."""

    model: str
    why: str
    settings: dict[str, str]


def with_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the secrets that stand in files.

    :raises ConfigurationError: a file cannot be read.
    """
    found = dict(environ)
    for name in SECRETS:
        path = found.pop(f"{name}_FILE", "")
        if path and not found.get(name):
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"{name}_FILE={path!r}: expected a file with the secret: {error}") from None
    return found


def data_folder(environ: Mapping[str, str]) -> Path:
    """The folder of the database and the kept key, made for its owner alone."""
    folder = Path(environ.get("FLASKCHAT_DATA") or ROOT / "instance").absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"FLASKCHAT_DATA={str(folder)!r}: expected a folder: {error}") from error
    return folder


def configuration(environ: Mapping[str, str]) -> dict[str, str]:
    """The FLASKCHAT_ settings that the environment gives."""
    config = {
        name: value for name, value in environ.items() if name.startswith("FLASKCHAT_") and name not in OWN
    }
    for usual, name in USUAL_NAMES.items():
        if environ.get(usual) and not config.get(name):  # which a compose file may set to nothing
            config[name] = environ[usual]
    config.setdefault("FLASKCHAT_URL_PREFIX", "")
    return config


def identity(header: str, proxies: int, config: Mapping[str, str]) -> Callable[[], str | None] | None:
    """Who a request is by the word of the proxy in front, where there is one that signs people in.

    :raises ConfigurationError: anybody could say that they are somebody, or nobody could.
    """
    if header and not proxies:
        raise ConfigurationError(
            f"FLASKCHAT_IDENTITY_HEADER={header!r}: expected FLASKCHAT_TRUSTED_PROXIES=1 or more beside it, and a "
            "proxy that sets the header in each request; without one anybody can send it"
        )
    if not header and load(config).identity_required:
        raise ConfigurationError(
            "FLASKCHAT_IDENTITY_REQUIRED=true: expected FLASKCHAT_IDENTITY_HEADER beside it; nobody can sign in here "
            "otherwise. In a Flask project it goes with your own login"
        )
    return (lambda: request.headers.get(header) or None) if header else None


def answering(config: Mapping[str, str]) -> Answering:
    """The model that is set, else one whose key is set, else one found on this host, else the guide."""
    choice = Registry(load(config)).default()
    if choice.id == "guide" and not config.get("FLASKCHAT_MODEL"):
        found = discover(PROBE)
        if found is not None:
            settings = {"FLASKCHAT_MODEL": found.id, "FLASKCHAT_OPENAI_BASE_URL": found.openai_base_url}
            return Answering(found.id, found.why, settings)
    return Answering(choice.id, choice.why, {})


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """
    :param environ: what to read in place of the process's environment.
    :raises ConfigurationError: names the variable, its value and what was expected.
    """
    if not logging.getLogger().handlers:
        logging.basicConfig(
            format="[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S %z"
        )
        log.setLevel(logging.INFO)
    environ = with_secrets(environ)
    folder = data_folder(environ)
    # no static folder of its own: the chat has the root, and serves its own files
    app = Flask("wsgi", root_path=str(ROOT), instance_path=str(folder), static_folder=None)
    app.config.update(configuration(environ))
    app.secret_key = environ.get("SECRET_KEY") or environ.get("FLASKCHAT_SECRET_KEY")
    chosen = app.extensions["flaskchat.answering"] = answering(app.config)
    app.config.update(chosen.settings)
    proxies = environ.get("FLASKCHAT_TRUSTED_PROXIES", "0") or "0"
    if not proxies.isdecimal():
        raise ConfigurationError(f"FLASKCHAT_TRUSTED_PROXIES={proxies!r}: expected a whole number, at least 0")
    if count := int(proxies):
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=count, x_proto=count, x_host=count)  # type: ignore[method-assign]
    FlaskChat(app, identity=identity(environ.get("FLASKCHAT_IDENTITY_HEADER", ""), int(proxies), app.config))
    app.register_error_handler(HTTPException, http_problem)  # nobody else's paths are here, so all errors look alike
    return app


def _told_in_a_line() -> Flask:
    """The application; where a setting is wrong, gunicorn and `flask` would show a page of traceback around it."""
    try:
        return create_app()
    except ConfigurationError as error:
        print(f"flaskchat: {error}", file=sys.stderr)
        raise SystemExit(BOOT_FAILED) from None


app = _told_in_a_line()
