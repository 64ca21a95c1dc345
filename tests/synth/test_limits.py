"""Limits that workers of one run folder share: rates, pauses, budgets, wasted tokens, and leases of suspended workers."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import CancelledError

import pytest

from plamo2_jax import models
from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModelConfig, ChatRequest, Usage
from plamo2_jax.models.openai_client import retry_after
from plamo2_jax.storage import located
from plamo2_jax.synth import owner_file
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig, read_config
from plamo2_jax.synth.fields import read_fields
from plamo2_jax.synth.folder_clock import FolderClock
from plamo2_jax.synth.lease import EXPIRES, STALE, LeaseLost, lease
from plamo2_jax.synth.limits import Budget, BudgetSpent, Guard, ServerGate, Terminated
from plamo2_jax.synth.rate import Rate
from plamo2_jax.synth.run import generate, open_recipes
from plamo2_jax.synth.shared_state import SharedState
from plamo2_jax.synth.spending import Ledger, StoredSpending
from support.synth_runs import write_config


class Clock:
    """A clock that moves only when somebody waits."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def two(folder, clock, **limits):
    """The rates of two workers in one folder."""
    return [Rate(folder / "rate.json", clock=clock, **limits) for _ in range(2)]


def test_requests_of_two_workers_are_spread_over_a_minute(tmp_path, clock):
    rates = two(tmp_path, clock, requests_per_minute=60)
    for i in range(10):
        rates[i % 2].acquire(pause=clock.pause)
    assert clock.now == pytest.approx(1009)


def test_a_refusal_seen_by_one_worker_stops_and_slows_the_other(tmp_path, clock):
    one, other = two(tmp_path, clock, requests_per_minute=60)
    one.acquire(pause=clock.pause)
    one.refuse(7)
    other.acquire(pause=clock.pause)
    assert clock.now == pytest.approx(1007)
    other.acquire(pause=clock.pause)
    assert clock.now == pytest.approx(1009)  # Half the rate.
    # Five steps of ten seconds restore the rate.
    clock.now += 50
    start = clock.now
    for _ in range(5):
        other.acquire(pause=clock.pause)
    assert clock.now - start == pytest.approx(4)


def test_a_place_that_was_booked_before_a_refusal_is_void(tmp_path, clock):
    one, other = two(tmp_path, clock, requests_per_minute=60)
    one.acquire(pause=clock.pause)
    waited = []

    def pause(seconds):
        if not waited:
            one.refuse(20)
        waited.append(seconds)
        clock.pause(seconds)

    other.acquire(pause=pause)
    assert clock.now == pytest.approx(1020)


def test_several_refusals_at_once_halve_the_rate_once(tmp_path, clock):
    rates = two(tmp_path, clock, requests_per_minute=60)
    for rate in rates:
        rate.refuse(1)
    assert rates[0]._state.read()["factor"] == 0.5


def test_without_limits_a_pause_is_shared(tmp_path, clock):
    one, other = two(tmp_path, clock)
    one.acquire(pause=clock.pause)
    one.refuse(3)
    other.acquire(pause=clock.pause)
    assert clock.now == pytest.approx(1003)


def test_tokens_of_two_workers_have_one_bucket(tmp_path, clock):
    rates = two(tmp_path, clock, tokens_per_minute=6000)
    for i in range(100):
        place = rates[i % 2].acquire(1000, clock.pause)
        rates[i % 2].settle(place, 200)
    # 100 responses of 200 tokens at 100 tokens a second. The first places are booked at the largest number of tokens.
    assert clock.now - 1000 == pytest.approx(200, rel=0.06)


def test_a_state_never_goes_back(tmp_path):
    state = SharedState(tmp_path / "s", {"x": 0.0})
    for _ in range(3):
        with state.update() as values:
            values["x"] += 1
    old = (tmp_path / "s").read_bytes()
    with state.update() as values:
        values["x"] += 1
    for content in (old, b'{"x": 1', b""):
        (tmp_path / "s").write_bytes(content)
        assert state.read()["x"] == 4


def test_updates_of_many_threads_without_common_locks_are_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    states = [SharedState(tmp_path / "s", {"x": 0.0}) for _ in range(4)]

    def work(state):
        for _ in range(10):
            with state.update() as values:
                values["x"] += 1

    threads = [threading.Thread(target=work, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states[0].read()["x"] == 40


def test_a_killed_holder_of_the_state_is_removed(tmp_path):
    state, host = SharedState(tmp_path / "s", {"x": 0.0}), socket.gethostname()
    for owner, clock in (
        ({"token": "t", "host": host}, time.time),
        ({"token": "t", "host": "b"}, lambda: time.time() + 60),
    ):
        state = SharedState(tmp_path / "s", {"x": 0.0}, clock)
        assert owner_file.create(tmp_path / "s.owner", owner)
        with state.update() as values:
            values["x"] += 1
    assert state.read()["x"] == 2


def test_the_clock_is_that_of_the_files_and_counts_suspensions(tmp_path):
    ticks = [5.0]
    clock = FolderClock(tmp_path, lambda: ticks[0])
    assert abs(clock() - time.time()) < 5
    before = clock()
    ticks[0] += 30
    assert clock() - before == pytest.approx(30)
    # After a minute it is measured again; it does not go back.
    ticks[0] += 40
    assert clock() >= before + 30
    assert not list(tmp_path.iterdir())


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("12") == 12
    assert retry_after("Sat, 28 Nov 2026 08:00:30 GMT", "Sat, 28 Nov 2026 08:00:00 GMT") == 30
    assert retry_after("Sat, 28 Nov 2026 08:00:30 GMT", "Sat, 28 Nov 2026 09:00:00 GMT") == 0
    assert retry_after("soon") == retry_after("") == retry_after("-1") == 0


def gate(folder, server, clock):
    """A client and the gate of a worker."""
    config = GeneratorConfig("m", server.url, max_retries=1, backoff=0.01, timeout=2.0)
    run = read_fields(SynthConfig, {"output": str(folder), "recipes": [{"name": "a"}]}, "c")
    budget = Budget(run, StoredSpending(folder, run), Ledger(folder / "spending"))
    rate = Rate(folder / "rate.json", requests_per_minute=6e5, clock=clock)
    plain = ChatModelConfig("m", server.url, max_retries=1, backoff=0.01, timeout=2.0)
    return models.open(plain, gate=ServerGate(rate, Guard(), budget, config)), rate


def test_retry_after_of_one_client_delays_the_other(tmp_path, server):
    start = time.monotonic()

    def clock():  # Twenty times as fast.
        return 1e6 + 20 * (time.monotonic() - start)

    (one, rate), (other, _) = gate(tmp_path, server, clock), gate(tmp_path, server, clock)
    refused = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n"
    server.troubles = {"first": [(refused,)]}
    with one, other:

        def ask():
            with contextlib.suppress(CancelledError):
                one.chat([ChatRequest("1", [{"role": "user", "content": "first"}])])

        thread = threading.Thread(target=ask)
        thread.start()
        while not (until := rate._state.read()["paused_until"]):
            assert thread.is_alive()
            time.sleep(0.002)
        [[response]] = other.chat([ChatRequest("2", [{"role": "user", "content": "second"}])])
        assert clock() >= until
        assert response.text.startswith("second")
        one.close()
        thread.join()
    assert rate._state.read()["factor"] < 1


def spending(folder):
    return json.loads((folder / "out/spending.json").read_text())


def test_wasted_tokens_are_counted_and_priced(folder, server):
    damaged = b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
    server.troubles = {"話題1。": [damaged], "話題2。": [damaged, damaged], "話題3。": ["cut"], "話題4。": [429]}
    config = write_config(folder, server, generator={"price_prompt": 1e6, "price_completion": 2e6, "concurrency": 1})
    assert main(["synth", config]) == 1
    found = spending(folder)
    assert found["wasted"] == {"unusable": 3}
    assert (found["wasted_prompt_tokens"], found["wasted_completion_tokens"]) == (15, 21)
    assert found["wasted_cost"] == pytest.approx(15 + 2 * 21)
    assert (found["failed_attempts"], found["unreported"]) == (5, 1)
    # The stored responses and the wasted ones are all that the server has counted.
    report = json.loads((folder / "out/report.json").read_text())["generate"]
    assert found["completion_tokens"] == report["spent"]["completion_tokens"] + 21
    assert report["failed"]


def test_other_samples_of_a_failed_request_are_wasted(folder, server):
    recipe = (folder / "facts.yaml").read_text(encoding="utf-8").replace("    max_new", "    n: 2\n    max_new")
    (folder / "facts.yaml").write_text(recipe, encoding="utf-8")
    server.troubles = {"話題0。": [400]}
    config = write_config(folder, server, recipes=[{"name": "facts.yaml", "seeds": 30}], generator={"concurrency": 1})
    assert main(["synth", config]) == 1
    found = spending(folder)
    assert found["wasted"] == {"dropped": 1}
    assert found["wasted_completion_tokens"] == found["wasted_cost"] > 0


def test_a_cut_answer_is_paid_without_a_record(folder, server, capsys):
    answer = server.answer

    def cut(body):
        found = answer(body)
        if "話題5。" in body["messages"][-1]["content"]:
            found["choices"][0]["finish_reason"] = "length"
        return found

    server.answer = cut
    assert main(["synth", write_config(folder, server)]) == 0
    wasted = json.loads((folder / "out/report.json").read_text())["generate"]["wasted"]
    assert wasted.keys() == {"cut"}
    assert wasted["cut"]["entries"] == 1
    assert wasted["cut"]["cost"] == wasted["cut"]["completion_tokens"] > 0
    assert "paid without a record, cut: 1 entries" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "value"), [("max_tokens", 100), ("max_cost", 100.0), ("max_seconds", 0.02)])
def test_a_budget_counts_the_other_worker(tmp_path, limit, value):
    prices = {"model": "m", "price_completion": 1e6}
    given = {"output": str(tmp_path), "recipes": [{"name": "a"}], "generator": prices, "limits": {limit: value}}
    run = read_fields(SynthConfig, given, "c")
    budgets = [Budget(run, StoredSpending(tmp_path, run), Ledger(tmp_path / "spending")) for _ in range(2)]
    if limit != "max_seconds":
        budgets[0].check()
    budgets[1].waste("unusable", Usage(0, 100), run.generator)
    time.sleep(0.01)
    budgets[1].refresh()
    budgets[0].refresh()
    with pytest.raises(BudgetSpent, match=f"limits.{limit}={value:g} is reached"):
        budgets[0].check()


def test_a_suspended_owner_of_a_lease_finds_out(tmp_path):
    ahead = [0.0]

    def clock():
        return time.time() + ahead[0]

    with lease(tmp_path, host="a", clock=clock) as mine:
        mine.check()
        ahead[0] = EXPIRES + 1
        with pytest.raises(LeaseLost, match="has expired"):
            mine.check()
        with pytest.raises(LeaseLost):
            mine.renew()
        ahead[0] = STALE + 1
        owner = owner_file.read(tmp_path / "lease.json")
        assert owner_file.remove_dead(tmp_path / "lease.json", owner)
        assert owner_file.create(tmp_path / "lease.json", {"host": "b", "token": "x"})
        with pytest.raises(LeaseLost, match="another worker has taken over"):
            mine.check()
    assert owner_file.read(tmp_path / "lease.json")["token"] == "x"


def test_an_owner_that_wakes_up_in_time_keeps_its_lease(tmp_path):
    assert owner_file.create(tmp_path / "lease.json", {"token": "x"})
    assert not owner_file.remove_dead(tmp_path / "lease.json", {"token": "x"}, lambda path: False)
    assert owner_file.read(tmp_path / "lease.json") == {"token": "x"}
    assert len(list(tmp_path.iterdir())) == 1


def test_after_its_lease_is_taken_over_a_worker_asks_and_stores_nothing(folder, server, capsys):
    answer = server.answer

    def take_over(body):
        if len(server.requests) == 3:
            (path,) = (folder / "out/units").glob("*/lease.json")
            path.write_text('{"host": "other", "token": "x"}')
        return answer(body)

    server.answer = take_over
    config = write_config(folder, server, unit_size=64, generator={"concurrency": 1})
    assert main(["synth", config, "--worker"]) == 0
    assert len(server.requests) == 3
    (journal,) = (folder / "out/units").glob("*/journal.jsonl")
    assert len(journal.read_text().splitlines()) == 2
    found = spending(folder)
    assert found["wasted"] == {"late": 1}
    assert (found["requests"], found["wasted_completion_tokens"]) == (2, found["wasted_cost"])
    assert "wasted: " in capsys.readouterr().out
    # The other worker is dead: the unit goes on, and the stored responses are not asked again.
    (folder / "out/units/00000/lease.json").unlink()
    server.answer = answer
    assert main(["synth", config]) == 0
    assert len(server.requests) == 3 + 28


def test_a_worker_that_is_asked_to_stop_stores_what_is_in_flight(folder, server):
    guard, answer = Guard(), server.answer

    def stop(body):
        if len(server.requests) >= 6:
            guard.stopped.set()
        return answer(body)

    server.answer = stop
    config = read_config(located(write_config(folder, server)))
    with pytest.raises(Terminated):
        generate(config, open_recipes(config), guard=guard)
    asked = len(server.requests)
    assert 6 <= asked < 30
    assert main(["synth", "out.yaml"]) == 0
    assert len(server.requests) == 30
    assert spending(folder)["wasted"] == {}


def test_a_server_that_fails_everything_has_its_own_status(folder, server, capsys):
    server.troubles = {"話題": [500] * 100}
    assert main(["synth", write_config(folder, server, unit_size=64)]) == 75
    assert "the last 20 requests failed" in capsys.readouterr().err


def test_workers_use_their_servers_and_one_name(folder, server):
    servers = [server.url, server.url.replace("127.0.0.1", "localhost")]
    config = write_config(folder, server, generator={"url": "http://service/v1", "servers": servers})
    assert main(["synth", config, "--worker-index", "3"]) == 0
    assert len(server.requests) == 30
    assert {headers["Host"].split(":")[0] for _, headers, _ in server.requests} == {"localhost"}
    assert main(["synth", config]) == 0
    assert len(server.requests) == 30


def test_an_output_without_links_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PlamoError, match="is in a bucket, which does not support atomic links"):
        owner_file.require_links("gs://bucket/synth")
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    with pytest.raises(PlamoError, match="does not support hard links"):
        owner_file.require_links(tmp_path / "out")
