"""Write the tables of settings between their marks: `python deploy/settings.py`.

All of them go into deploy/README.md, and those that are wanted first into README.md.

They are made from `flaskchat.config.SETTINGS`, and a test finds out when they were not made again.
"""

from __future__ import annotations

from pathlib import Path

from flaskchat.config import PREFIX, SETTINGS, Setting

DEPLOY = Path(__file__).resolve().parent
FIRST = (
    "MODEL", "MODELS", "OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SYSTEM_PROMPT", "URL_PREFIX",
    "DATABASE_URL", "IDENTITY_REQUIRED", "MESSAGES_PER_MINUTE",
)  # fmt: skip
TABLES: dict[Path, list[Setting]] = {
    DEPLOY / "README.md": list(SETTINGS),
    DEPLOY.parent / "README.md": [setting for name in FIRST for setting in SETTINGS if setting.name == PREFIX + name],
}
BEGIN, END = "<!-- settings: made by deploy/settings.py -->\n", "<!-- end of settings -->"


def row(setting: Setting) -> str:
    default = "" if setting.default in (None, "") else f"`{setting.default}`"
    return f"| `{setting.name}` | {default} | {setting.unit} | {setting.help.replace('|', chr(92) + '|')} |\n"


def table(settings: list[Setting]) -> str:
    return "| Setting | Default | Unit | What it is for |\n|---|---|---|---|\n" + "".join(map(row, settings))


def with_table(text: str, settings: list[Setting]) -> str:
    """
    :param text: the document.
    :param settings: which to put into it.
    :raises ValueError: it lacks one of the marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the marks {BEGIN!r} and {END!r}")
    return before + begin + table(settings) + end + after


if __name__ == "__main__":
    for path, chosen in TABLES.items():
        path.write_text(with_table(path.read_text(encoding="utf-8"), chosen), encoding="utf-8")
