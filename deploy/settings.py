"""Write the table of settings into deploy/README.md, between its two marks: `python deploy/settings.py`.

The table is made from `flaskchat.config.SETTINGS`, and a test finds out when it was not made again.
"""

from __future__ import annotations

from pathlib import Path

from flaskchat.config import SETTINGS, Setting

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- settings: made by deploy/settings.py -->\n", "<!-- end of settings -->"


def row(setting: Setting) -> str:
    default = "" if setting.default in (None, "") else f"`{setting.default}`"
    return f"| `{setting.name}` | {default} | {setting.unit} | {setting.help.replace('|', chr(92) + '|')} |\n"


def table() -> str:
    return "| Setting | Default | Unit | What it is for |\n|---|---|---|---|\n" + "".join(map(row, SETTINGS))


def with_table(text: str) -> str:
    """
    :param text: the document.
    :raises ValueError: it lacks one of the marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the marks {BEGIN!r} and {END!r}")
    return before + begin + table() + end + after


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
