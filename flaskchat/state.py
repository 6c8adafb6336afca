"""What one application's chat consists of: `app.extensions["flaskchat"]`. Opens nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flask import Flask, current_app

from .config import Settings
from .providers.registry import Registry
from .runtime import Lazy, Runtime
from .security import Identity

KEY = "flaskchat"


@dataclass(frozen=True)
class State:
    app: Flask
    settings: Settings
    registry: Registry
    identity: Identity
    lazy: Lazy
    database_url: str = field(repr=False)
    """May hold a password."""
    on_close: Callable[[], None]

    @property
    def runtime(self) -> Runtime:
        """This process's part, opened at the first use."""
        return self.lazy.get()

    def start(self) -> None:
        """Open this process's part now; for a server's hook after the fork. Repeating it changes nothing."""
        self.lazy.start()

    def close(self) -> None:
        """Finish or end this process's runs and close what it opened."""
        self.lazy.close()
        self.on_close()


def current_state() -> State:
    """The state of the application that serves the request."""
    state = current_app.extensions[KEY]
    assert isinstance(state, State)
    return state
