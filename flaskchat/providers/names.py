"""Model ids: `provider:name`, or a Python model's bare name.

A name may itself hold colons and slashes (`openai:llama3:8b`), so only the first colon divides, and only after a
provider that exists.
"""

from __future__ import annotations

import re

from ..config import Settings

HTTP_PROVIDERS = ("openai", "anthropic")
PYTHON = "python"
PYTHON_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")


def split(model_id: str) -> tuple[str, str]:
    """Provider and name; the provider of a bare name, or of an unknown prefix, is empty."""
    provider, colon, name = model_id.partition(":")
    if colon and provider in (*HTTP_PROVIDERS, PYTHON):
        return provider, name
    return "", model_id


def configured(settings: Settings) -> list[str]:
    """The ids that the operator named, the default first, each once."""
    listed = [settings.model or "", *settings.models.split(",")]
    return list(dict.fromkeys(stripped for item in listed if (stripped := item.strip())))
