"""What a host project gets to test its own chat."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from flask import session

from flaskchat import FlaskChat
from flaskchat.testing import ChatClient
from tests.conftest import ROOT
from tests.hosts import bare, host, parrot


def test_a_reply_has_its_text_its_events_and_how_it_ended(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path)) as chat:
        reply = chat.ask("hello you")
        assert (reply.text, reply.state) == ("hello you ", "done")
        assert [event.name for event in reply.events][0::len(reply.events) - 1] == ["start", "done"]
        assert [event.seq for event in reply.events] == list(range(1, len(reply.events) + 1))
        assert reply.events[0].data["run_id"] == reply.run_id
        assert chat.ask("more", conversation_id=reply.conversation_id).conversation_id == reply.conversation_id
        assert [m["text"] for m in chat.conversation(reply.conversation_id)["messages"]] == [
            "hello you", "hello you ", "more", "more ",
        ]  # fmt: skip


def test_a_run_is_followed_from_any_cursor_and_is_over_at_its_end(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path)) as chat:
        reply = chat.ask("one")
        assert chat.follow(reply.run_id) == reply.events
        assert chat.follow(reply.run_id, after=1) == reply.events[1:]
        assert chat.follow(reply.run_id, after=reply.events[-1].seq) == []


def test_a_model_that_fails_is_a_reply_that_says_so(tmp_path: Path) -> None:
    def broken(request: object) -> list[str]:
        raise ValueError("inner")

    app = bare(tmp_path)
    FlaskChat(app).model("broken")(broken)
    with ChatClient(app) as chat:
        reply = chat.ask("x")
        assert (reply.state, reply.text, reply.events[-1].data["code"]) == ("error", "", "model_raised")


def test_a_refusal_is_an_assertion_with_the_servers_words(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path)) as chat:
        with pytest.raises(AssertionError, match=r"422 .*there is no such model|422 .*There is no such model"):
            chat.ask("x", model="unheard-of")
        with pytest.raises(AssertionError, match="404 NOT FOUND"):
            chat.follow("run_unknown")
        with pytest.raises(AssertionError, match="404 NOT FOUND"):
            chat.conversation("c_unknown")


def test_each_client_is_a_visitor_of_its_own_and_one_may_be_given(tmp_path: Path) -> None:
    app = bare(tmp_path)
    app.add_url_rule("/login", "login", lambda: session.update(user="ada") or "in")
    FlaskChat(app, url_prefix="/a/b", identity=lambda: session.get("user")).model("parrot")(parrot)
    client = app.test_client()
    client.get("/login")
    with ChatClient(app, client) as ada:
        assert ada.ask("x").text == "x "
        with pytest.raises(AssertionError, match="401"):
            ChatClient(app).ask("x")


def test_an_application_without_a_chat_is_told(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="call FlaskChat"):
        ChatClient(bare(tmp_path))


def test_leaving_the_block_closes_what_was_opened_also_after_a_failure(tmp_path: Path) -> None:
    app = host(tmp_path)
    chat = ChatClient(app)
    chat.ask("x")
    runtime = app.extensions["flaskchat"].runtime
    with pytest.raises(RuntimeError), chat:
        raise RuntimeError
    assert runtime._closed
    assert app.extensions["flaskchat"].lazy._runtime is None


def test_a_hosts_own_tests_pass_with_every_warning_as_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_host.py").write_text(
        textwrap.dedent("""
        import pytest
        from flask import Flask
        from flaskchat import FlaskChat
        from flaskchat.testing import ChatClient

        @pytest.fixture
        def app(tmp_path):
            app = Flask("mine", instance_path=str(tmp_path))
            chat = FlaskChat(app)

            @chat.model("parrot")
            def parrot(request):
                for word in request.text.split():
                    yield word + " "

            return app

        @pytest.mark.parametrize("n", range(3))
        def test_the_parrot_repeats(app, n):
            with ChatClient(app) as chat:
                reply = chat.ask("hello you")
                assert reply.text == "hello you "
                assert reply.state == "done"
                assert chat.follow(reply.run_id, after=1)[-1].name == "done"
                assert chat.client.get("/chat/").status_code == 200
        """)
    )
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error",
         "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout
