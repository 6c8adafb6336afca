"""The checker's rules about requests: one generation per client id, nothing of another owner's, honest answers."""

from __future__ import annotations

import json
import re
from collections import defaultdict

from tests.server.evidence import Case, cursor_of


def tags(case: Case) -> dict[str, str]:
    """The model's tag of each run, by its post."""
    found = {post.run_id: post.tag for post in case.history.posts if post.status == 200 and post.tag}
    posts = {(case.stored_owners.get(post.owner), post.client_id): post for post in case.history.posts}
    for request in case.dump.requests:
        post = posts.get((request.owner, request.client_id))
        if post is not None and post.tag:
            found[request.run_id] = post.tag
    return found


def once(case: Case) -> None:
    """However often a POST is repeated, there is one run, and the model is asked for one reply."""
    runs: dict[tuple[str, str], set[str]] = defaultdict(set)
    asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
    names = {stored: owner for owner, stored in case.stored_owners.items()}
    for post in case.history.posts:
        if post.tag:
            asked[post.tag].add((post.owner, post.client_id))
        if post.status == 200:
            runs[post.owner, post.client_id].add(post.run_id)
    for request in case.dump.requests:
        runs[names.get(request.owner, request.owner), request.client_id].add(request.run_id)
    for (owner, client_id), run_ids in runs.items():
        if len(run_ids) > 1:
            case.say("once", f"the client id {client_id} has the runs {sorted(run_ids)}", client=owner)
    known = {request.run_id for request in case.dump.requests}
    for run_id in case.dump.runs:
        if run_id not in known:
            case.say("once", "belongs to no client id", run_id)
    for tag, counters in (case.stats or {}).get("tags", {}).items():
        if tag in asked and counters["begun"] > len(asked[tag]):
            words = f"the model began {counters['begun']} replies to {len(asked[tag])} client ids (tag {tag})"
            case.say("once", words, client=min(asked[tag])[0])


def owners(case: Case) -> None:
    """What is one's is never another's, in the store and on the wire."""
    names: dict[str, set[str]] = defaultdict(set)
    for owner, stored in case.stored_owners.items():
        names[stored].add(owner)
    for stored, several in names.items():
        if len(several) > 1:
            case.say("owner", f"in the store {stored} is {sorted(several)}")
    for post in case.history.posts:
        run = case.dump.runs.get(post.run_id)
        if post.status == 200 and run is not None and run.owner != case.stored_owners[post.owner]:
            words = f"is {run.owner}'s in the store, its sender {case.stored_owners[post.owner]}"
            case.say("owner", words, run.id, client=post.client)
    whose = {post.run_id: post.owner for post in case.history.posts if post.status == 200}
    for reading in case.history.readings:
        owner = whose.get(reading.run_id, reading.owner)
        # "come back later" names no run, and is the same for one that there never was
        said = 503 if reading.status == 200 and "Flaskchat-Run-Id" not in reading.stream.headers else reading.status
        if owner != reading.owner and (reading.events or said not in (401, 404, 429, 503)):
            words = f"{reading.status} and {len(reading.events)} events of a run of {owner}'s"
            case.say("owner", words, reading.run_id, reading.last, reading.client)
    for answer in case.history.answers:
        for run_id in set(re.findall(r"run_[\w-]{10,}", json.dumps(answer.body))):
            run = case.dump.runs.get(run_id)
            mine = case.stored_owners.get(answer.owner)
            if run is not None and answer.status < 400 and run.owner != mine and mine is not None:
                case.say("owner", f"{answer.method} {answer.path} names another's run", run_id, client=answer.client)


def answers(case: Case, refusals: frozenset[int]) -> None:
    """No status outside the contract; what is one's own is found; 204 stands at the end only."""
    deletions = {(a.owner, a.path.rsplit("/", 1)[1]): a.at for a in case.history.answers if a.method == "DELETE"}
    deleters = {owner for owner, _ in deletions}
    for post in case.history.posts:
        # Somebody else's tab may have deleted the conversation meanwhile.
        gone = post.status == 404 and post.owner in deleters
        if post.status not in (0, 200, *refusals) and not gone:
            case.say("answer", f"POST /conversation: {post.status} {post.code}", post.run_id, client=post.client)
    whose = {post.run_id: post.owner for post in case.history.posts if post.status == 200}
    for reading in case.history.readings:
        run_id, status = reading.run_id, reading.status
        log = case.logs.get(run_id)
        if status in (200, *refusals):
            continue
        if status == 204:
            if log and run_id in case.whole and cursor_of(reading.cursor) != log[-1].seq:
                words = f"204 to the cursor {reading.cursor}, and the log ends with {log[-1].seq}"
                case.say("answer", words, run_id, client=reading.client)
        elif status == 404:
            if run_id in case.dump.runs and whose.get(run_id) == reading.owner:
                case.say("answer", "404 for one's own run", run_id, client=reading.client)
        else:
            case.say("answer", f"following answered {status}", run_id, client=reading.client)
    for answer in case.history.answers:
        if answer.status >= 500 and answer.status != 503:
            case.say("answer", f"{answer.method} {answer.path}: {answer.status}", client=answer.client)
