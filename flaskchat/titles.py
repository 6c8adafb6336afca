"""A conversation's title, better than the question's first words: the model is asked for one beside the first reply.

It delays nothing: the reply's source is open when the question for a title goes out, and nobody waits for the answer.
A title that comes while the reply is being written is one of its events; later, it is only stored. One that a person
has given meanwhile stays.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from . import tasks
from .errors import FlaskChatError, ModelError
from .feed import Feed
from .models import Delta, Done, Request, Title, Turn, visible
from .providers.base import Provider, Source
from .store.begin import title_of
from .store.sql import Store

logger = logging.getLogger("flaskchat")

PATIENCE = 60.0
"""Seconds after which a title is not worth having; a model on this machine may first write the reply."""
LOOK = 0.1
"""Seconds between looks at whether a question is still wanted."""
LONGEST = 80
QUESTION_CHARS = 2000
ASK = (
    "Write a title of at most six words for a conversation that begins with the message below, in its language. "
    "Answer with the title alone, without quotes or a full stop.\n\n"
)


class _Question:
    """One question under way. Its own task closes the source once that is open: a descriptor must not be closed while
    the hub watches it, which ends the whole process."""

    __slots__ = ("conversation_id", "opened", "source", "task", "until", "wanted")

    def __init__(self, conversation_id: str, source: Source) -> None:
        self.conversation_id = conversation_id
        self.source = source
        self.task: tasks.Task | None = None
        self.until = time.monotonic() + PATIENCE
        self.opened = False
        self.wanted = True

    def drop(self) -> None:
        self.wanted = False
        if not self.opened:
            self.source.close()  # wakes the task where it waits for the head of the answer

    def answer(self) -> str:
        """The whole answer's text; empty when it was dropped before."""
        self.source.open()
        self.opened = True
        text = ""
        while self.wanted:
            for event in self.source.read():
                if isinstance(event, Delta):
                    text += event.text
                elif isinstance(event, Done):
                    return text
            fd = self.source.fileno()
            if fd is None:
                break
            if not getattr(self.source, "pending", False):
                tasks.wait_readable(fd, LOOK)
        return ""


class Titles:
    """The questions for a title that are under way. They give way to the next question of a person."""

    def __init__(
        self, store: Store, resolve: Callable[[str], tuple[Provider, str]], touch: Callable[[Feed], None]
    ) -> None:
        """:param touch: tells the pump that a feed has something new."""
        self._store = store
        self._resolve = resolve
        self._touch = touch
        self._questions: list[_Question] = []

    def begin(self, feed: Feed) -> None:
        """Ask for the title of the conversation that this run begins, if it does and its model can be asked."""
        begun = feed.begun
        if len(begun.turns) != 1 or begun.partial:
            return
        if begun.title != title_of(begun.turns[0].text):
            return  # it has a better one already, which may be a person's: this is another answer to its first question
        provider, name = self._resolve(begun.model)
        if not getattr(provider, "writes_titles", False):
            return
        turn = Turn("user", ASK + begun.turns[0].text[:QUESTION_CHARS])
        source = provider.source(Request(model=name, turns=[turn], stream=False, owner=begun.owner))
        question = _Question(begun.conversation_id, source)
        self._questions.append(question)
        question.task = tasks.spawn(self._ask, feed, question, name="flaskchat-title")

    def drop(self, conversation_id: str) -> None:
        """Ask no more for this conversation's title: a model that serves one request at a time is wanted for better."""
        for question in self._questions:
            if question.conversation_id == conversation_id:
                question.drop()

    def check(self, now: float) -> None:
        """Looked at by the pump: a title that takes too long is not worth having."""
        for question in self._questions:
            if now > question.until:
                question.drop()
        self._questions = [q for q in self._questions if q.task is None or q.task.is_alive()]

    def close(self) -> None:
        for question in self._questions:
            question.drop()

    def _ask(self, feed: Feed, question: _Question) -> None:
        begun = feed.begun
        try:
            title = clean(question.answer())
            if title and self._store.retitle(begun.conversation_id, begun.title, title):
                feed.notes.append(Title(title))
                self._touch(feed)
        except ModelError as error:
            logger.info("run %s: no title from its model: %s", begun.run_id, error.bare().logged(words=False))
        except FlaskChatError as error:
            logger.info("run %s: no title from its model: %s", begun.run_id, error)
        except Exception:
            logger.exception("run %s: asking for a title failed", begun.run_id)
        finally:
            question.source.close()


def clean(text: str) -> str:
    """A title out of what a model wrote: one line without thoughts, quotes, marks and invisible characters."""
    text = re.sub(r"(?s)^.*</think>", "", text)
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"[*_`#]+", "", visible(line))  # a title is no Markdown
    line = re.sub(r"^(?:\s|title:)+", "", line, flags=re.IGNORECASE).strip(" *_\"'“”„‘’«».")
    return line if len(line) <= LONGEST else line[:LONGEST].rsplit(" ", 1)[0] + "…"
