"""Streaming chat for Flask: replies over server-sent events that survive a reload, a deploy and a killed worker."""

import sys

if sys.platform == "win32":
    raise ImportError("flaskchat needs Linux or macOS; on Windows use WSL")

from .errors import ConfigurationError, FlaskChatError, ModelError, RequestError
from .extension import FlaskChat
from .models import Request, Turn, Usage
from .signals import run_ended, run_started

__all__ = [
    "ConfigurationError",
    "FlaskChat",
    "FlaskChatError",
    "ModelError",
    "Request",
    "RequestError",
    "Turn",
    "Usage",
    "run_ended",
    "run_started",
]

__version__ = "0.1.0"
