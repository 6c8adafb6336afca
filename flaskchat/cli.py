"""`flask chat …`"""

from __future__ import annotations

import click
from flask.cli import AppGroup

from .config import SETTINGS
from .errors import FlaskChatError
from .state import current_state

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
