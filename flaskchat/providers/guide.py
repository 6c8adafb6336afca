"""The built-in model: it answers questions about flaskchat from its own documentation, and says that it does.

It owns the reading of the documentation, its full-text index and the wording of an answer. It knows nothing of runs,
logs or HTTP: it is a generator of strings, as any project may register one with `@chat.model`.

Deliberate choices; do not change one without reading why:

 1. The index lies in memory and is built at the first question: nothing may open a database before the fork, and a few
    dozen sections take milliseconds.
 2. An answer depends on the conversation alone. So `continue` goes on where a stopped answer ended, by making the
    answer again and leaving out what is there (`Request.partial`).
 3. Sections are given whole or cut between blocks, never inside a code block or a table.
 4. It pauses between words. It would be instant otherwise, and this is what a newcomer sees the streaming with.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import tasks
from ..config import SETTINGS, Setting
from ..errors import ConfigurationError
from ..models import Request
from ..store.sqlite import sqlite_module

PAUSE = 0.02
"""Seconds between two pieces: about fifty a second, the pace of a quick model."""
PIECE = 14
"""Characters of the longest piece; longer words come in several."""
ANSWER_CHARS = 6000
"""How much of a section is given at once; of a longer one it is said that there is more."""
MAX_CHARS, MAX_WORDS = 2000, 24
"""How much of a question is read, and how many of its words are looked up: a longer text is no question."""
SURE, GUESS = 0.6, 0.4
"""Share of a question's words that a section must hold to be given without a warning, and with one."""
SETTINGS_SOURCE = "flaskchat/config.py"

WHO = (
    "I am flaskchat's built-in guide. I am **not a language model**: I look answers up in flaskchat's documentation "
    "and show you the section that fits."
)
CONNECT = """\
To talk to a language model instead, connect one and start again:

```sh
OPENAI_API_KEY=sk-... ./deploy/run                    # OpenAI, or with OPENAI_BASE_URL any server that speaks its API
ANTHROPIC_API_KEY=sk-ant-... ./deploy/run             # Anthropic
ollama serve & ./deploy/run                           # Ollama, llama.cpp or LM Studio on this machine are found
FLASKCHAT_MODEL=openai:gpt-5-mini ./deploy/run        # name the model yourself
```

In a Flask project, any Python generator of strings is a model: register it with `@chat.model("name")`."""
ASK = """\
You can ask me, for example:

- How do I connect a model?
- How do I add flaskchat to my Flask project?
- How do I run it behind nginx?
- What happens to a reply when I reload the page?
- What does FLASKCHAT_DRAIN do?"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GREETINGS = _words("hi hello hey hallo hola moin howdy greetings welcome yo morning evening afternoon good there day")
THANKS = _words("thanks thank thx cheers great nice cool ok okay perfect wonderful much very bye goodbye you")
WHO_ARE_YOU = re.compile(
    r"\b(who|what)\s*(are|r|'re)\s+(you|u)\b|\bwhat('s| is) your name\b"
    r"|\bare you\b.*\b(ai|gpt|chatgpt|claude|bot|robot|model|llm|human|real)\b"
    r"|\b(which|what)\s+(language\s+)?(model|llm|ai)\b.*\b(you|this|here|answers?|answering|am i|talking)\b",
    re.I,
)
HELP = re.compile(r"^\W*(help|what can (you do|i ask)( you)?|what do you know)\W*$", re.I)

# Left out of a query: they stand in every section, or say nothing about which one is meant.
STOPWORDS = _words(
    """a about all also am an and any are as at be because been being but by can could did do does doing done don t for
    from get give go got had has have having he her here hers him his how i if in into is it its just know let like ll m
    make may me might mine more most much must my need no not of on once one only or other our out over own please re s
    same shall she should so some such tell than that the their them then there these they thing things this those to
    too us use used using ve very want was way we were what when where whether which while who whom why will with work
    works would you your yours flaskchat explain show find working way possible happen happens question"""
)
# What users say, and what the documentation calls it.
SYNONYMS = {
    "abort": "stop", "auth": "identity", "authentication": "identity", "autoscale": "workers", "cancel": "stop",
    "chatgpt": "openai", "claude": "anthropic", "color": "theme", "colour": "theme", "css": "theme", "db": "database",
    "disconnect": "drop", "docker": "container", "embed": "widget", "endpoint": "api", "endpoints": "api",
    "gpt": "openai", "install": "start", "k8s": "container", "key": "openai", "kill": "killed",
    "kubernetes": "container", "limits": "limit", "llamacpp": "llama", "llm": "model", "login": "identity",
    "metrics": "prometheus",
    "monitor": "metrics", "multiuser": "owner", "offline": "drop", "option": "setting", "options": "setting",
    "password": "identity", "permission": "owner", "podman": "container", "port": "address", "postgres": "postgresql",
    "provider": "model", "quickstart": "start", "refresh": "reload", "restart": "deploy", "scale": "workers",
    "service": "systemd", "shutdown": "drain", "sigterm": "drain", "token": "tokens", "tls": "nginx",
    "update": "upgrade", "upgrading": "upgrade", "https": "nginx", "users": "owner", "websocket": "sse",
}  # fmt: skip


class Section(NamedTuple):
    title: str
    """Its heading, after those above it: `Connect a model › Connect Ollama`."""
    body: str
    source: str
    asked: str = ""
    """Words that people ask with and the text does not have: a comment `<!-- asked: ... -->` below the heading."""

    @property
    def heading(self) -> str:
        return self.title.rpartition(" › ")[2]


def documents() -> list[tuple[str, Path]]:
    """The documentation's files with the names they have in a checkout: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    packed = [("README.md", package / "docs" / "README.md"), ("deploy/README.md", package / "docs" / "deploy.md")]
    if packed[0][1].exists():
        return packed
    root = package.parent
    if not (root / "pyproject.toml").exists():
        return []
    return [("README.md", root / "README.md"), ("deploy/README.md", root / "deploy" / "README.md")]


def split_markdown(text: str, source: str) -> list[Section]:
    """One section for each heading, titled with the headings that lead to it. Those in code blocks do not count."""
    path: list[str] = []
    sections: list[Section] = []
    body: list[str] = []
    fence = ""

    def close() -> None:
        joined = "\n".join(body)
        asked = " ".join(re.findall(r"<!-- asked: (.*?) -->", joined, re.S))
        joined = plain_links(re.sub(r"<!--.*?-->", "", joined, flags=re.S)).strip()
        if joined:
            sections.append(Section(" › ".join(path[1:] or path), joined, source, asked))
        body.clear()

    for line in text.split("\n"):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        heading = None if fence else re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        if heading:
            close()
            level = len(heading[1])
            del path[level - 1 :]
            path.append(heading[2].replace("`", ""))
        else:
            body.append(line)
    close()
    return sections


def plain_links(text: str) -> str:
    """Drop images and turn links within the repository into their text: on the chat's page they would lead nowhere."""
    text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n?", "", text, flags=re.M)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def setting_section(setting: Setting) -> Section:
    """What one setting is for, and both ways to give it."""
    default = "not set" if setting.default in (None, "") else f"`{setting.default}`"
    facts = [f"Default: {default}" + (f" {setting.unit}" if setting.unit and setting.default is not None else "")]
    if setting.minimum is not None:
        facts.append(f"at least {setting.minimum:g}")
    if setting.secret:
        facts.append("secret: never shown or logged")
    example: Any = "..." if setting.default is None else setting.default
    body = (
        f"`{setting.name}`: {setting.help} {'; '.join(facts)}.\n\n"
        f'```python\napp.config["{setting.name}"] = {example!r}   # in a Flask project\n```\n\n'
        f"```sh\n{setting.name}={example} ./deploy/run   # the standalone application reads its environment\n```"
    )
    return Section(f"The setting {setting.name}", body, SETTINGS_SOURCE)


class Index:
    """Full-text search over sections. Holds a database in memory; a lock makes it safe for threads."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self.sections = list(sections)
        try:
            module: Any = sqlite_module()
        except ConfigurationError:  # unfit for a file that several workers write, but nothing here is written
            module = sqlite3
        self._lock = tasks.Lock()
        self._connection = module.connect(":memory:", check_same_thread=False)
        self._connection.execute(
            "CREATE VIRTUAL TABLE section USING fts5(heading, title, asked, body, tokenize = 'porter unicode61')"
        )
        self._connection.executemany(
            "INSERT INTO section(rowid, heading, title, asked, body) VALUES (?, ?, ?, ?, ?)",
            [(number, item.heading, item.title, item.asked, item.body) for number, item in enumerate(self.sections)],
        )

    def search(self, words: list[str]) -> list[tuple[Section, float]]:
        """The fitting sections, best first, each with the share of the words (0 to 1) that it holds."""
        if not words:
            return []
        quoted = [" OR ".join(f'"{word}"' for word in {word, SYNONYMS.get(word, word)}) for word in words]
        held: dict[int, int] = {}
        with self._lock:
            for word in quoted:
                for (rowid,) in self._connection.execute("SELECT rowid FROM section WHERE section MATCH ?", (word,)):
                    held[rowid] = held.get(rowid, 0) + 1
            ranked = self._connection.execute(
                "SELECT rowid, bm25(section, 5.0, 1.0, 5.0, 0.7) FROM section WHERE section MATCH ?",
                (" OR ".join(quoted),),
            ).fetchall()

        def score(row: tuple[int, float]) -> float:
            """bm25, which is better the lower it is, times what it does not know."""
            rowid, rank = row
            section = self.sections[rowid]
            heading = words_of(section.heading)
            meant = sum(word in words for word in heading) / len(heading) if heading else 0.0
            # a section with all the words before one that has a rare word often, and prose before a single setting
            kind = 0.5 if section.source == SETTINGS_SOURCE else 1.0
            return rank * (held[rowid] / len(words)) ** 2 * (1 + meant) * kind

        return [(self.sections[rowid], held[rowid] / len(words)) for rowid, _ in sorted(ranked, key=score)]

    def setting(self, text: str) -> Section | None:
        """The section of the one setting that the text names."""
        named = {name.upper() for name in re.findall(r"\bFLASKCHAT_\w+", text, re.I)}
        titles = {f"The setting {name}" for name in named}
        found = [section for section in self.sections if section.title in titles]
        return found[0] if len(found) == 1 else None


@functools.cache
def index() -> Index:
    """The index of this process."""
    sections: list[Section] = []
    for name, path in documents():
        if path.exists():
            sections += split_markdown(path.read_text(encoding="utf-8"), name)
    return Index([*sections, *map(setting_section, SETTINGS)])


def words_of(text: str) -> list[str]:
    """The words worth looking up, lower case, each once."""
    words = re.findall(r"[^\W_]+", text.lower())
    wanted = (word for word in words if word not in STOPWORDS and not word.isdigit() and len(word) > 1)
    return list(dict.fromkeys(wanted))[:MAX_WORDS]


def clip(body: str, limit: int = ANSWER_CHARS) -> tuple[str, bool]:
    """The first whole blocks of a section, about `limit` characters, and whether anything was left out."""
    if len(body) <= limit:
        return body, False
    blocks = split_blocks(body)
    kept, size = [blocks[0]], len(blocks[0])
    for block in blocks[1:]:
        if size + len(block) > limit:
            break
        kept.append(block)
        size += len(block)
    return "\n\n".join(kept), len(kept) < len(blocks)


def split_blocks(body: str) -> list[str]:
    """Paragraphs, lists, tables and code blocks, each whole."""
    blocks: list[str] = []
    fence = ""
    for part in body.split("\n\n"):
        if fence:
            blocks[-1] += "\n\n" + part
        elif part.strip():
            blocks.append(part.strip("\n"))
        for mark in re.findall(r"^\s*(`{3,}|~{3,})", part, re.M):
            fence = "" if fence and mark.startswith(fence) else fence or mark
    return blocks


def looked_up(question: str) -> str:
    """The answer to a question that is not about the guide itself."""
    found = index()
    named, words = found.setting(question), words_of(question)
    if not words and re.search(r"\bworks?\b", question, re.I):
        words = ["architecture"]  # "How does it work?" has no other word to look up
    hits = [(named, 1.0)] if named else found.search(words)
    if not words and "flaskchat" in question.lower():
        hits = [(found.sections[0], 1.0)]  # "What is flaskchat?": the documentation's first words
    if not hits or hits[0][1] < GUESS:
        return f"I found nothing about that in flaskchat's documentation, and I know nothing else.\n\n{ASK}"
    best, share = hits[0]
    body, cut = clip(best.body)
    parts = [] if share >= SURE else ["I am not sure that I understood; this is the nearest I found."]
    parts += [f"From *{best.title}* in `{best.source}`:", body]
    if cut:
        parts.append(f"There is more in that section of `{best.source}`.")
    others = [f"*{section.title}*" for section, held in hits[1:4] if held >= SURE]
    if others:
        parts.append("See also: " + ", ".join(others) + ".")
    return "\n\n".join(parts)


def answer(question: str, *, first: bool) -> str:
    """
    :param question: what the user wrote.
    :param first: whether nothing was answered in this conversation before; then the guide says what it is.
    """
    question = question[:MAX_CHARS]
    words = set(re.findall(r"[^\W_]+", question.lower()))
    if WHO_ARE_YOU.search(question):
        return f"{WHO}\n\n{CONNECT}\n\n{ASK}"
    if words <= GREETINGS:  # or no word at all
        return f"Hello! {WHO}\n\n{ASK}\n\n{CONNECT}" if first else f"Hello again.\n\n{ASK}"
    if words <= THANKS | GREETINGS:
        return f"You are welcome. {ASK}" if not first else f"Hello! {WHO}\n\n{ASK}\n\n{CONNECT}"
    if HELP.match(question):
        return f"{WHO}\n\n{ASK}\n\n{CONNECT}" if first else ASK
    body = looked_up(question)
    if not first:
        return body
    # the section may itself be one on how to connect a model
    return f"{WHO}\n\n{body}" if "From *Connect a model" in body else f"{WHO}\n\n{body}\n\n---\n\n{CONNECT}"


def pieces(text: str) -> Iterator[str]:
    """The text in words with the white space behind them; long words in several pieces."""
    for word in re.findall(r"\s+|\S+\s*", text):
        for start in range(0, len(word), PIECE):
            yield word[start : start + PIECE]


def guide(request: Request) -> Iterator[str]:
    """Answer the last question of the conversation, a word at a time."""
    first = not any(turn.role == "assistant" for turn in request.turns)
    text = answer(request.text, first=first)
    for piece in pieces(text.removeprefix(request.partial)):
        yield piece
        tasks.sleep(PAUSE)
