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
from tests.hosts import Gate, bare, host, parrot


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


def test_a_reply_is_left_stopped_and_continued(tmp_path: Path) -> None:
    app, gate = bare(tmp_path), Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        left = chat.ask("x", leave_after=2)
        assert (left.text, left.state, len(left.events)) == ("Well ", "running", 2)
        stopped = chat.stop(left.run_id)
        assert (stopped.text, stopped.state) == ("Well ", "stopped")
        assert stopped.events[:2] == left.events
        assert stopped[:3] == left[:3], "the same ids"
        assert chat.stop(left.run_id) == stopped
        gate.opened.set()
        went_on = chat.continue_(left.message_id)
        assert (went_on.text, went_on.state) == ("Well then.", "done")
        assert (went_on.message_id, went_on.conversation_id) == (left.message_id, left.conversation_id)
        assert went_on.run_id != left.run_id
        _, reply = chat.conversation(left.conversation_id)["messages"]
        assert (reply["id"], reply["status"]) == (left.message_id, "done")
        assert reply["text"] == stopped.text + went_on.text
        assert chat.stop(went_on.run_id) == went_on, "stopping what has ended changes nothing"


def test_whoever_has_left_may_follow_what_goes_on(tmp_path: Path) -> None:
    app, gate = bare(tmp_path), Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        left = chat.ask("x", leave_after=1)
        assert [event.name for event in left.events] == ["start"]
        gate.opened.set()
        rest = chat.follow(left.run_id, after=1)
        assert [event.seq for event in rest] == list(range(2, len(rest) + 2))
        assert rest[-1].name == "done"


def test_a_regenerated_reply_is_another_beside_the_first(tmp_path: Path) -> None:
    app = bare(tmp_path)
    chat_of_app = FlaskChat(app)
    chat_of_app.model("parrot")(parrot)
    chat_of_app.model("loud")(lambda request: [request.text.upper()])
    with ChatClient(app) as chat:
        reply = chat.ask("one")
        again = chat.regenerate(reply.message_id)
        assert (again.text, again.state) == ("one ", "done")
        assert again.conversation_id == reply.conversation_id
        loud = chat.regenerate(reply.message_id, model="loud")
        assert loud.text == "ONE"
        assert len({reply.message_id, again.message_id, loud.message_id}) == 3
        texts = [message["text"] for message in chat.conversation(reply.conversation_id)["messages"]]
        assert texts == ["one", "one ", "one ", "ONE"]


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
        with pytest.raises(AssertionError, match="404 NOT FOUND"):
            chat.stop("run_unknown")
        with pytest.raises(AssertionError, match="404 NOT FOUND"):
            chat.regenerate("m_unknown")
        with pytest.raises(AssertionError, match="422 "):
            chat.continue_(chat.ask("x").message_id)  # it is done


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
