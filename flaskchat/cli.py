"""`flask chat …`"""

from __future__ import annotations

import click
from flask.cli import AppGroup

from .config import PREFIX, SETTINGS
from .state import current_state

chat = AppGroup("chat", help="The streaming chat of this application.")


@chat.command("settings")
def show_settings() -> None:
    """List every setting with its value, its default and what it means."""
    settings = current_state().settings
    for setting in SETTINGS:
        value = getattr(settings, setting.name.removeprefix(PREFIX).lower())
        shown = "(set)" if setting.secret and value else repr(value)
        unit = f" {setting.unit}" if setting.unit else ""
        changed = "" if value == setting.default else f"  (default: {setting.default!r})"
        click.echo(f"{setting.name} = {shown}{unit}{changed}\n    {setting.help}")


@chat.command("models")
def show_models() -> None:
    """List the models that can be picked, and which answers by default and why."""
    registry = current_state().registry
    for item in registry.items():
        click.echo(f"{'*' if item['default'] else ' '} {item['id']}")
    choice = registry.default()
    click.echo(f"Default: {choice.id}, {choice.why}")
