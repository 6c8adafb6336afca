"""bandit over all that is shipped: each of its findings is answered here, by file and kind; a new one fails."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT

# What bandit reports everywhere, and why it is none here.
EVERYWHERE = {
    "B101": "asserts state what the types cannot; nothing is checked by them that comes from outside",
    "B311": "jitter and load need no cryptographic generator; ids and keys come from `secrets`",
    "B404": "subprocess is used to build the page and to measure, see B603",
    "B603": "commands are lists of our own words, without a shell",
}
ANSWERED = {
    ("B104", "deploy/health.py"): "compares HOST with the address of all interfaces, to ask at one that answers",
    ("B104", "deploy/start.py"): "compares HOST with the address of all interfaces, to print one that can be opened",
    ("B105", "flaskchat/providers/guide.py"): "words that questions are asked with, such as `password`",
    ("B108", "deploy/gunicorn.conf.py"): "/dev/shm is for gunicorn's own file, which it makes unnamed",
    ("B108", "flaskchat/bench/serving.py"): "the same",
    ("B606", "deploy/start.py"): "becomes gunicorn, or deploy/run for its help: a list of our own words",
    ("B608", "flaskchat/store/migrate.py"): "the only name put in is a constant of ours",
    ("B608", "flaskchat/store/search.py"): "the only name put in is a constant of ours; what is looked for is bound",
    ("B704", "flaskchat/views/page.py"): "a template of ours, which escapes what it is given",
}


def test_every_finding_of_bandit_is_answered() -> None:
    command = [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json", "flaskchat", "deploy", "wsgi.py"]
    command += ["-x", "flaskchat/static,flaskchat/frontend/node_modules"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert report["metrics"]["_totals"]["loc"] > 5000, "it looked at nothing"
    found = {(item["test_id"], item["filename"].removeprefix("./")): item for item in report["results"]}
    new = {
        key: f"{item['filename']}:{item['line_number']}: {item['issue_text']}"
        for key, item in found.items()
        if key[0] not in EVERYWHERE and key not in ANSWERED
    }
    assert new == {}
    assert ANSWERED.keys() <= found.keys(), "an answer to nothing"
