"""`flask chat …`"""

from __future__ import annotations

import shutil
import sys

import click
import msgspec
from flask.cli import AppGroup

from . import forget, openapi
from .config import SETTINGS
from .errors import FlaskChatError
from .state import current_state
from .store import migrate
from .store.kinds import open_database

chat = AppGroup("chat", help="The streaming chat of this application.")


def add(commands: click.Group) -> None:
    """Add the group, as `flask flaskchat` where the application has a `chat` command of its own."""
    commands.add_command(chat, "flaskchat" if "chat" in commands.commands else "chat")


@chat.command("settings")
def show_settings() -> None:
    """List every setting with its value, its default and what it means. Keys and passwords are not shown."""
    settings = current_state().settings
    for setting in SETTINGS:
        value = getattr(settings, setting.field)
        unit = f" {setting.unit}" if setting.unit and value is not None else ""
        changed = "" if value == setting.default else f"  (default: {setting.default!r})"
        click.echo(f"{setting.name} = {setting.show(value)}{unit}{changed}\n    {setting.help}")


@chat.command("purge")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="In place of FLASKCHAT_RETENTION_DAYS.")
def purge(days: float | None) -> None:
    """Delete the conversations of all owners in which nothing has happened for so many days, and all that was in them.

    The server may run meanwhile, and does the same every now and then where FLASKCHAT_RETENTION_DAYS is set.
    """
    state = current_state()
    days = days or state.settings.retention_days
    if not days:
        raise click.UsageError("say how old: --days 30, or set FLASKCHAT_RETENTION_DAYS")
    try:
        database = open_database(state.database_url, timeout=state.settings.database_timeout)
        try:
            migrate.upgrade(database)
            found = forget.older_than(database, days)
        finally:
            database.close()
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{found} {'conversation' if found == 1 else 'conversations'} deleted.")


@chat.command("openapi")
def print_openapi() -> None:
    """Print the HTTP API as an OpenAPI document, in JSON."""
    version = sys.modules["flaskchat"].__version__
    found = openapi.document(current_state().settings, version)
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))


@chat.command("models")
def show_models() -> None:
    """List the models that can be picked, and which answers by default and why."""
    registry = current_state().registry
    try:
        choice = registry.default()
        items = registry.items()
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    for item in items:
        click.echo(f"{'*' if item['default'] else ' '} {item['id']}")
    click.echo(f"Default: {choice.id}, {choice.why}")


@chat.command("bench")
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=20, show_default=True, help="Tokens/s of one reply.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=5, show_default=True, help="Counted in each step.")
@click.option("--replies", type=click.IntRange(1), help="Live replies at most; absent: until the delay rises.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Of gunicorn.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def bench(rate: float, seconds: float, replies: int | None, workers: int, *, as_json: bool) -> None:
    """Measure how many live replies this machine holds, and what each costs.

    Starts gunicorn with this application's FLASKCHAT_ settings, a database of its own in a temporary folder, and a
    stand-in for the model, all on the loopback; and ends them again. Your data and your model have no part in it.
    """
    from .bench import ramp, show  # here, because a server's workers have no use for it

    terminal = sys.stderr.isatty()

    def progress(words: str) -> None:
        click.echo(f"\r\x1b[K{words}" if terminal else words, err=True, nl=not terminal)

    options = ramp.Options(rate=rate, seconds=seconds, replies=replies, workers=workers)
    try:
        report = ramp.measure(options, current_state().settings, progress)
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if terminal:
            progress("")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
        return
    for line in show.lines(report, shutil.get_terminal_size().columns, show.ink(sys.stdout.encoding)):
        click.echo(line)
