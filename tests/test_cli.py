"""`flask chat …`, as a host's developer types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from flaskchat import FlaskChat
from flaskchat.config import SETTINGS
from tests.conftest import ROOT
from tests.hosts import bare, host, parrot


def test_settings_lists_every_setting_with_its_value_unit_and_help(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_HEARTBEAT="7", FLASKCHAT_MAX_STREAMS=None)
    result = app.test_cli_runner().invoke(args=["chat", "settings"])
    assert result.exit_code == 0, result.output
    for setting in SETTINGS:
        assert f"{setting.name} = " in result.output
        assert setting.help in result.output
    assert "FLASKCHAT_HEARTBEAT = 7.0 seconds  (default: 15.0)\n" in result.output
    assert "FLASKCHAT_MAX_STREAMS = None\n" in result.output
    assert "FLASKCHAT_DRAIN = 5.0 seconds\n" in result.output
    assert f"FLASKCHAT_DATABASE_URL = 'sqlite:///{tmp_path / 'instance' / 'flaskchat.sqlite3'}'\n" in result.output


def test_settings_shows_no_secret(tmp_path: Path) -> None:
    app = host(
        tmp_path,
        FLASKCHAT_OPENAI_API_KEY="sk-hunter2",
        FLASKCHAT_ANTHROPIC_API_KEY="hunter2",
        FLASKCHAT_REDIS_URL="redis://:hunter2@h/0",
        FLASKCHAT_DATABASE_URL="postgresql://me:hunter2@db.example/chat",
    )
    output = app.test_cli_runner().invoke(args=["chat", "settings"]).output
    assert "hunter2" not in output
    assert "FLASKCHAT_OPENAI_API_KEY = (set)" in output
    assert "db.example/chat" in output


def test_models_lists_them_with_the_default_and_why(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_MODELS="openai:gpt-5")
    result = app.test_cli_runner().invoke(args=["chat", "models"])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "* parrot",
        "  openai:gpt-5",
        "Default: parrot, because the application registered it",
    ]


def test_models_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    result = host(tmp_path, FLASKCHAT_MODEL="unheard-of").test_cli_runner().invoke(args=["chat", "models"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: FLASKCHAT_MODEL='unheard-of'")


def test_the_commands_open_nothing(tmp_path: Path) -> None:
    app = host(tmp_path)
    for command in ("settings", "models"):
        app.test_cli_runner().invoke(args=["chat", command])
    assert not Path(app.instance_path).exists()


def test_a_hosts_own_chat_command_stays_the_hosts(tmp_path: Path) -> None:
    app = bare(tmp_path)
    app.cli.add_command(click.Command("chat", callback=lambda: click.echo("mine")))
    FlaskChat(app).model("parrot")(parrot)
    runner = app.test_cli_runner()
    assert runner.invoke(args=["chat"]).output == "mine\n"
    assert "* parrot" in runner.invoke(args=["flaskchat", "models"]).output


def test_it_is_listed_by_flask_and_works_from_a_shell(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(
        "from flask import Flask\nfrom flaskchat import FlaskChat\napp = Flask(__name__)\nchat = FlaskChat(app)\n"
    )

    def flask(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "flask", "--app", "project", *args],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
            timeout=60, check=True,
        ).stdout  # fmt: skip

    assert "The streaming chat of this application." in flask("--help")
    assert "* guide" in flask("chat", "models")
    assert "/chat/conversation" in flask("routes")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["project.py"]
