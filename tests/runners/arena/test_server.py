"""The arena over HTTP, by the standard library's client, and killed."""

import http.client
import json
import threading
from collections import Counter
from contextlib import contextmanager

from srgym.runners.arena.server import ArenaServer
from srgym.runners.arena.sittings import Sittings
from srgym.runners.arena.votes import read_lines


class Client:
    """A rater's browser, as far as the server can tell."""

    def __init__(self, port, cookie=None):
        self.port, self.cookie = port, cookie

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            headers["Cookie"] = self.cookie
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def json(self, method, path, body=None):
        status, content, _ = self(method, path, body)
        assert status == 200, content
        return json.loads(content)

    def join(self):
        return self.json("POST", "/join", {"agreed": True})["rater"]

    def vote(self, rater, number, choice=0, seconds=1.0):
        body = {"rater": rater, "number": number, "choice": choice, "seconds": seconds}
        return self("POST", "/vote", body)[0]


@contextmanager
def serving(study, token=None):
    with Sittings(study) as sittings, ArenaServer(sittings, port=0, token=token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server.server_address[1]), server
        finally:
            server.shutdown()
            thread.join()


def test_a_session_from_consent_to_the_end(make):
    study = make(photographs=2, repeats=1, checks=1)
    with serving(study) as (ask, _):
        assert ask.json("GET", "/study")["welcome"][0] == "Compare images"
        rater, seen = ask.join(), []
        while not (trial := ask.json("GET", f"/trial?rater={rater}"))["done"]:
            pictures = [ask("GET", address) for address in [*trial["images"], trial["lr"]]]
            assert all(status == 200 and content.startswith(b"\x89PNG") for status, content, _ in pictures)
            assert ask.vote(rater, trial["number"], choice=None if trial["number"] == 2 else 1) == 200
            seen.append([content for _, content, _ in pictures])
        assert len(seen) == trial["total"] == 8
    votes = read_lines(study.folder / "votes.jsonl")
    assert [vote["number"] for vote in votes] == list(range(8))
    assert votes[2]["choice"] is None and all(v["choice"] == v["shown"][1] for v in votes if v["number"] != 2)
    for vote, (left, right, _) in zip(votes, seen, strict=True):  # what was shown is what is written down
        context = study.contexts.index(vote["id"])
        assert [study.image(name, context).read_bytes() for name in vote["shown"]] == [left, right]


def test_a_rater_goes_on_where_they_stopped_and_nobody_counts_twice(make):
    study = make()
    with serving(study) as (ask, _):
        rater = ask.join()
        assert ask.vote(rater, 0) == 200
        assert ask.vote(rater, 0) == 409  # a double click
        assert ask.vote(rater, 5) == 409  # of another time
    with serving(study) as (ask, _):
        assert ask.json("GET", f"/trial?rater={rater}")["number"] == 1
        assert ask.vote(rater, 0) == 409
        assert ask.vote(rater, 1) == 200
    assert [vote["number"] for vote in read_lines(study.folder / "votes.jsonl")] == [0, 1]


def test_twenty_posts_of_one_vote_at_once_count_once_and_raters_do_not_mix(make):
    study = make()
    with serving(study) as (ask, _):
        raters = [ask.join(), ask.join()]
        answers = []

        def post(rater):
            answers.append((rater, ask.vote(rater, 0)))

        threads = [threading.Thread(target=post, args=(rater,)) for rater in raters * 20]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(answers) == {(rater, code): n for rater in raters for code, n in ((200, 1), (409, 19))}
    assert sorted(vote["rater"] for vote in read_lines(study.folder / "votes.jsonl")) == sorted(raters)


def test_what_was_answered_for_survives_kill_9(make, start):
    study = make()
    process, port = start(study)
    ask = Client(port)
    rater = ask.join()
    assert [ask.vote(rater, number) for number in range(5)] == [200] * 5
    process.kill()
    process.wait()
    with serving(study) as (ask, _):
        assert ask.json("GET", f"/trial?rater={rater}")["number"] == 5
    assert [vote["number"] for vote in read_lines(study.folder / "votes.jsonl")] == list(range(5))


def test_addresses_of_images_tell_nothing_and_cannot_be_forged(make):
    study = make()
    with serving(study) as (ask, _):
        rater, other = ask.join(), ask.join()
        trial = ask.json("GET", f"/trial?rater={rater}")
        assert not any(name in json.dumps(trial) for name in (*study.methods, *study.contexts, "method", "intact"))
        first = trial["images"][0]
        *_, place, signature = first.split("/")
        forged = [
            first[:-1] + ("0" if first[-1] != "0" else "1"),
            first.replace(rater, other),
            f"/image/{rater}/0/lr/{signature}",
            f"/image/{rater}/7/{place}/{signature}",
            f"/image/{rater}/{'9' * 400}/{place}/{signature}",
            f"/image/{rater}/x/{place}/{signature}",
            f"/image/{rater}/0/{place}/%C3%A9",
        ]
        assert [ask("GET", address)[0] for address in forged] == [404] * len(forged)
        assert ask("GET", first)[0] == 200
    with serving(study) as (ask, _):
        assert ask("GET", first)[0] == 404  # another process has another secret
        again = ask.json("GET", f"/trial?rater={rater}")["images"][0]
        assert again != first and ask("GET", again)[0] == 200


def test_no_path_of_a_request_is_one_on_the_disk(make):
    with serving(make()) as (ask, _):
        for path in ("/../votes.jsonl", "/%2e%2e/votes.jsonl", "/welcome.txt", "/material/study.json", "//etc/passwd",
                     "/image/../../../etc/passwd", "/image/%2e%2e%2fstudy.json", "/page/../server.py"):  # fmt: skip
            status, content, _ = ask("GET", path)
            assert status == 404 and json.loads(content).keys() == {"error"}, path


def test_bodies_that_are_no_votes_are_refused_in_a_sentence(make):
    study = make(ties=False)
    with serving(study) as (ask, _):
        rater = ask.join()
        vote = {"rater": rater, "number": 0, "choice": 0, "seconds": 1.0}
        for change in ({"choice": 2}, {"choice": -1}, {"choice": "ours"}, {"choice": True}, {"choice": None},
                       {"seconds": float("nan")}, {"seconds": 1e300}, {"number": "0"}, {"rater": None}):  # fmt: skip
            assert ask("POST", "/vote", {**vote, **change})[0] == 400, change
        assert ask("POST", "/vote", {"rater": rater, "number": 0, "seconds": 1})[0] == 400
        assert ask("POST", "/vote", {**vote, "rater": "nobody"})[0] == 404
        assert ask("POST", "/join", {"agreed": "yes"})[0] == 400
        assert ask("POST", "/vote", b"{", Content_Type="application/json")[0] == 400
        assert ask("POST", "/vote", b"[" * 4000, Content_Type="application/json")[0] == 400
        assert ask("POST", "/vote", b"1" * 5000, Content_Type="application/json")[0] == 413
        # What a form of another site's page can send
        assert ask("POST", "/vote", json.dumps(vote).encode(), Content_Type="text/plain")[0] == 415
        assert ask("PUT", "/vote", {})[0] == 501
        assert read_lines(study.folder / "votes.jsonl") == []
        assert ask.vote(rater, 0) == 200


def test_a_name_that_is_not_this_machines_is_refused_without_a_token(make):
    with serving(make()) as (ask, _):
        assert ask("GET", "/", Host="127.0.0.1:8020")[0] == 200
        assert ask("GET", "/", Host="localhost")[0] == 200
        assert ask("GET", "/", Host="[::1]:80")[0] == 200
        assert ask("GET", "/study", Host="evil.example")[0] == 403
        assert ask("POST", "/join", {"agreed": True}, Host="evil.example:8020")[0] == 403


def test_with_a_token_nothing_is_shown_without_it(make):
    study, token = make(), "a-token-of-my-own"
    with serving(study, token) as (ask, server):
        assert server.url.endswith(f"/?token={token}")
        for path in ("/", "/study", "/arena.js", "/trial?rater=x", "/image/a/0/0/b"):
            assert ask("GET", path)[0] == 403
        assert ask("POST", "/join", {"agreed": True})[0] == 403
        assert ask("GET", "/?token=another-token-yes")[0] == 403
        assert ask("GET", "/?token=%C3%A9")[0] == 403
        assert Client(ask.port, cookie=f"arena_{ask.port}=another")("GET", "/")[0] == 403
        status, _, headers = ask("GET", f"/?token={token}")
        assert status == 303 and headers["Location"] == "/"
        assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
        inside = Client(ask.port, cookie=headers["Set-Cookie"].split(";")[0])
        assert inside("GET", "/")[0] == 200 and inside.join()
    assert len(read_lines(study.folder / "raters.jsonl")) == 1


def test_the_page_may_load_nothing_from_elsewhere(make):
    with serving(make()) as (ask, _):
        _, page, headers = ask("GET", "/")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        parts = page + ask("GET", "/arena.js")[1] + ask("GET", "/arena.css")[1]
        assert b"http://" not in parts and b"https://" not in parts and b"innerHTML" not in parts
