"""A Flask project with the host's settings, for the time of the measurement.

It is the extension in three lines, in a folder of its own: neither the host's code nor its data has a part in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.engine import make_url

from ..config import SETTINGS, Settings

APPLICATION = '''\
"""Made by `flask chat bench`."""

import json
from pathlib import Path

from flask import Flask
from flaskchat import FlaskChat

folder = Path(__file__).resolve().parent
app = Flask("bench", root_path=str(folder), instance_path=str(folder / "instance"), static_folder=None)
app.config.update(json.loads((folder / "settings.json").read_text()))
FlaskChat(app)
'''

NONE_OF_THEIRS = ("database_url", "redis_url", "openai_api_key", "anthropic_api_key", "models")
"""Settings that lead to data, to a model or to money of the host's."""
NO_LIMIT = (
    "max_runs_per_owner", "messages_per_minute", "tokens_per_day", "max_streams_per_owner", "max_streams_per_address",
    "connections_per_second",
)  # fmt: skip
"""0 switches them off: all streams come from one address."""
MOST = 1 << 30


def settings_for(host: Settings, model_url: str) -> dict[str, Any]:
    """What goes into `app.config`: the host's settings, but for those that would measure something else, or limit it.

    :param model_url: of the stand-in.
    """
    values = {setting.field: getattr(host, setting.field) for setting in SETTINGS}
    values |= dict.fromkeys(NONE_OF_THEIRS, None) | dict.fromkeys(NO_LIMIT, 0)
    values |= {
        "url_prefix": "", "model": "openai:stand-in", "openai_base_url": model_url, "titles": False,
        "identity_required": False, "max_runs": MOST, "max_streams": MOST, "max_queued_bytes": MOST << 10,
        "run_timeout": 3600, "drain": 0,
    }  # fmt: skip
    return {setting.name: values[setting.field] for setting in SETTINGS if values[setting.field] is not None}


def left_alone(host: Settings) -> str:
    """What of the host's configuration takes no part, in words; empty where everything that matters does."""
    other = []
    if host.database_url and make_url(host.database_url).get_backend_name() != "sqlite":
        other.append("FLASKCHAT_DATABASE_URL")
    if host.redis_url:
        other.append("FLASKCHAT_REDIS_URL")
    return f"Measured with a SQLite file of its own: {' and '.join(other)} left alone." if other else ""


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Write the project into an empty folder."""
    (folder / "bench_project.py").write_text(APPLICATION, encoding="utf-8")
    (folder / "settings.json").write_bytes(msgspec.json.encode(settings))
    (folder / "workers").mkdir()
