"""`flask chat …`"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
from flask.cli import AppGroup

from . import audit, backup, forget, openapi, transfer
from .config import SETTINGS
from .errors import FlaskChatError
from .state import current_state
from .store import migrate
from .store.engine import Database
from .store.kinds import open_database

chat = AppGroup("chat", help="The streaming chat of this application.")


def add(commands: click.Group) -> None:
    """Add the group, as `flask flaskchat` where the application has a `chat` command of its own."""
    commands.add_command(chat, "flaskchat" if "chat" in commands.commands else "chat")


@chat.command("settings")
def show_settings() -> None:
    """List every setting with its value, its default and what it means. Keys and passwords are not shown."""
    state = current_state()
    for setting in SETTINGS:
        value = getattr(state.settings, setting.field)
        unit = f" {setting.unit}" if setting.unit and value is not None else ""
        changed = "" if value == setting.default else f"  (default: {setting.default!r})"
        if setting.field == "database_url" and value is None:
            value = state.database_url  # where the data lies is what somebody who looks here wants to know
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
            found, _ = forget.older_than(database, days)
        finally:
            database.close()
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{found} {'conversation' if found == 1 else 'conversations'} deleted.")


@chat.group("db")
def db() -> None:
    """Back the database up, upgrade it, copy another into it, and check what it holds."""


@contextlib.contextmanager
def _opened(open_it: Callable[[str], Database], what: str) -> Iterator[tuple[Database, Callable[[str], None]]]:
    """The configured database, and where to tell how far it is.

    :param what: has become of it where somebody pressed Ctrl-C.
    """
    terminal = sys.stderr.isatty()
    told = ""

    def progress(words: str) -> None:
        nonlocal told
        stage = words.partition(": ")[0]
        if terminal:
            click.echo(f"\r\x1b[K{words}", err=True, nl=False)
        elif stage != told:  # in a file, a line for each stage
            click.echo(stage, err=True)
        told = stage

    try:
        database = open_it(current_state().database_url)
        try:
            yield database, progress
        finally:
            database.close()
            if terminal:
                click.echo("\r\x1b[K", err=True, nl=False)
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted: {what}") from None


def _report(wrong: list[str], well: str) -> None:
    for words in wrong:
        click.echo(words)
    if wrong:
        raise click.exceptions.Exit(1)
    click.echo(well)


@db.command("upgrade")
def db_upgrade() -> None:
    """Apply the migrations that are missing; a server does so at its start as well."""
    try:
        database = open_database(current_state().database_url, timeout=transfer.TIMEOUT)
        try:
            before = migrate.standing(database)
            migrate.upgrade(database)
            after = migrate.standing(database)
        finally:
            database.close()
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    moved = "nothing to do" if before == after else f"from {before or 'an empty database'}"
    click.echo(f"{database.name} is at revision {after}: {moved}.")


@db.command("backup")
@click.argument("path", type=click.Path(path_type=Path))
def db_backup(path: Path) -> None:
    """Copy the SQLite database as it is at this moment into a new file at PATH. The server may run meanwhile.

    The copy is the whole database by itself, has been checked, and is there only if this command says so. Nothing is
    ever replaced; what a command that was killed leaves at PATH's side ends in `.unfinished`, and may be deleted.
    """
    try:
        source, size = backup.make(current_state().database_url, path)
    except FlaskChatError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: no backup was made") from None
    click.echo(f"{path} holds all that was in {source}: {size / 1e6:.1f} MB, checked.")


@db.command("copy")
@click.argument("source_url")
def db_copy(source_url: str) -> None:
    """Copy everything from the database at SOURCE_URL into the configured one, which must be empty.

    Stop the server first. The source is only read. A copy that was interrupted goes on where it stopped when the
    command is repeated, and is compared with the source at the end.
    """
    with _opened(transfer.open_target, "repeat the command, and the copy goes on") as (target, progress):
        source = transfer.open_source(source_url, "SOURCE_URL")
        try:
            past = transfer.past_of(current_state().settings, source)
            wrong = transfer.copy(source, target, past, progress)
        finally:
            source.close()
        _report(wrong, f"{target.name} holds all that is in {source.name}.")


@db.command("check")
@click.argument("other_url", required=False)
def db_check(other_url: str | None) -> None:
    """Check that the database holds together; or, with OTHER_URL, that both hold the same. Changes nothing."""
    with _opened(transfer.open_source, "nothing was changed") as (database, progress):
        if other_url is None:
            _report(audit.inspect(database, progress), f"{database.name} holds together.")
            return
        other = transfer.open_source(other_url, "OTHER_URL")
        try:
            wrong = audit.compare(other, database, progress)
        finally:
            other.close()
        _report(wrong, f"{database.name} and {other.name} hold the same.")


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
