"""Requests of models that aren't there: held in order, within limits; lost never."""

from __future__ import annotations

import pytest
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Endpoint, Limits, Load, Refuse, Share, Status

ASK = request("POST", "/v1/completions", b'{"model":"m"}')


def waiting(rig: Rig, count: int) -> Load:
    return rig.agent.wait(Load, lambda load: load.waiting == count)


def test_held_until_it_opens(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port))
    with rig.client() as client:
        client.send(ASK)
        load = waiting(rig, 1)
        assert load.in_flight == 0
        assert load.oldest_s is not None
        rig.open(waited_for="nvme", seconds=1.25, victims=("x",))
        answer = client.answer()
        assert answer.status == 200
        assert answer.fields["x-kybernate-tier"] == "nvme"
        assert answer.fields["x-kybernate-swap-ms"] == "1250"
        assert 0 <= int(answer.fields["x-kybernate-wait-ms"]) < 20_000
        assert client.model("m").fields["x-kybernate-tier"] == "warm"
    done = rig.agent.wait(Load, lambda load: load.ended == 2)
    assert (done.waiting, done.in_flight, done.begun) == (0, 0, 2)
    assert done.service_s is not None
    assert done.epoch == rig.epoch


def test_oldest_first_and_never_more_at_once_than_allowed(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",), limits=Limits(concurrency=1)))
    clients = [rig.client() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(request("GET", f"/svc/{number}/wait"))
        waiting(rig, number + 1)
    rig.open()
    for number, client in enumerate(clients):
        while not server.release():
            assert server.control()["waiting"] <= 1
        assert client.answer().json()["target"] == f"/svc/{number}/wait"
        client.socket.close()
    loads = rig.agent.of(Load)
    assert max(load.in_flight for load in loads) == 1


def test_a_share_lets_more_through(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve(limits=Limits(concurrency=1))
    clients = [rig.client() for _ in range(3)]
    for client in clients:
        client.send(request("GET", "/svc/wait"))
    waiting(rig, 2)
    rig.agent.send(Share("m", 3))
    eventually(lambda: server.control()["waiting"] == 3)
    for _ in clients:
        server.release()
    for client in clients:
        assert client.answer().status == 200
        client.socket.close()


def test_a_full_queue_and_a_deadline(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1, limits=Limits(queue=2, hold_s=600)))
    rig.agent.send(Status("m", "paused", tier="ram", expected_s=7.2))
    with rig.client() as one, rig.client() as two, rig.client() as three:
        one.send(ASK)
        waiting(rig, 1)
        answer = two.model("m", x_kybernate_max_wait="0.2")
        assert (answer.status, answer.code) == (503, "hold_timeout")
        assert answer.fields["retry-after"] == "8"
        assert int(answer.fields["x-kybernate-wait-ms"]) >= 200
        two.send(ASK)
        waiting(rig, 2)
        answer = three.model("m")
        assert (answer.status, answer.code) == (429, "queue_full")
        assert answer.fields["retry-after"] == "8"
        assert three.model("m", x_kybernate_max_wait="soon").status == 400
        assert three.model("m", x_kybernate_max_wait="nan").status == 400


def test_a_worker_holds_so_many_requests_and_bytes(rig: Rig) -> None:
    rig.configure(Endpoint("a", 1), Endpoint("b", 1), held_max=2, held_bytes_max=4000)
    body = b'{"model":"a","x":"' + b"x" * 3000 + b'"}'
    with rig.client() as one, rig.client() as two, rig.client() as three:
        one.send(request("POST", "/v1/completions", body))
        rig.agent.wait(Load, lambda load: load.model == "a" and load.waiting == 1)
        assert two.ask("POST", "/v1/completions", body).status == 429
        two.send(request("POST", "/v1/completions", b'{"model":"b"}'))
        rig.agent.wait(Load, lambda load: load.model == "b" and load.waiting == 1)
        answer = three.model("b")
        assert (answer.status, answer.code) == (429, "held_full")


def test_bodies_that_are_still_being_read_count_too(rig: Rig, eventually: Eventually) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port), held_bytes_max=100_000)
    rig.open()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 90000\r\n\r\n"
    body = b'{"model":"m","x":"' + b"x" * 60_000
    with rig.client() as first:
        first.send(head + body)

        def refused() -> bool:
            with rig.client() as second:
                second.send(head + body)
                second.socket.settimeout(0.5)
                try:
                    return second.answer().status == 429
                except TimeoutError:
                    return False

        assert eventually(refused)
        first.send(b"x" * (90_000 - len(body) - 2) + b'"}')
        assert first.answer().status == 200
        assert first.model("m").status == 200
    assert len(server.requests) == 2


def test_a_client_that_hangs_up_is_held_no_longer(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port))
    with rig.client() as stays:
        leaves = rig.client()
        leaves.send(ASK)
        waiting(rig, 1)
        stays.send(ASK)
        waiting(rig, 2)
        leaves.socket.close()
        rig.agent.wait(Load, lambda load: load.waiting == 1 and load.begun == 2)
        rig.open()
        assert stays.answer().status == 200
    assert len(server.requests) == 1


def test_one_that_hangs_up_behind_an_unread_body_is_found(rig: Rig) -> None:
    """Where more of a body lies ready than is taken ahead, the end of the connection can't be read."""
    rig.configure(Endpoint("m", 1, paths=("/svc",)))
    client = rig.client()
    client.send(b"PUT /svc HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 100_000)
    waiting(rig, 1)
    client.socket.close()
    rig.agent.wait(Load, lambda load: load.waiting == 0 and load.begun == 1 and load.ended == 1)


def test_a_model_that_can_not_be_had(rig: Rig, eventually: Eventually) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",), health="/svc/health"))
    with rig.client() as one, rig.client() as two:
        one.send(ASK)
        waiting(rig, 1)
        rig.agent.send(Refuse("m", 503, "its image is damaged", retry_after_s=30))
        answer = one.answer()
        assert (answer.status, answer.code, answer.fields["retry-after"]) == (503, "model_unavailable", "30")
        assert "image is damaged" in answer.json()["error"]["message"]
        assert two.model("m").status == 503
        assert two.ask("GET", "/svc/health").status == 503
        rig.agent.send(Status("m", "paused"))
        eventually(lambda: two.ask("GET", "/v1/models/m").json()["state"] == "paused")
        one.send(ASK)
        rig.agent.wait(Load, lambda load: load.waiting == 1 and load.begun == 3)
        rig.open()
        assert one.answer().status == 200


@pytest.mark.timeout(300)
def test_ten_thousand_held_and_none_lost(rig: Rig, eventually: Eventually) -> None:
    count = 10_000
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, limits=Limits(queue=count)))
    before = rss(rig.pid)
    clients = []
    for _ in range(9_000):  # this process's own limit may be 20,000, and the others need some
        client = rig.client()
        client.send(ASK)
        clients.append(client)
    piped = count - len(clients)
    # The rest shares what is there: held one after the other, since a connection's requests are answered in order.
    for client in clients[:piped]:
        client.send(ASK)
    waiting(rig, len(clients))
    each = (rss(rig.pid) - before) / len(clients)
    assert each < 64 << 10, f"{each:.0f} bytes for each held request"
    rig.open(waited_for="ram", seconds=0.5)
    lost = sum(client.answer().status != 200 for client in clients)
    lost += sum(client.answer().status != 200 for client in clients[:piped])
    assert lost == 0
    assert len(server.requests) == count
    for client in clients:
        client.socket.close()
    eventually(lambda: open_files(rig.pid) < 100, what="all descriptors are given back")


def test_what_is_held_while_the_worker_ends(rig: Rig) -> None:
    rig.start("--grace", "3600")
    rig.configure(Endpoint("m", 1))
    with rig.client() as client:
        client.send(ASK)
        waiting(rig, 1)
        rig.started.terminate()
        answer = client.answer()
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert client.ended
    assert rig.started.wait(60) == 0, "nothing in flight, nothing to wait for"


def rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


def open_files(pid: int) -> int:
    import os

    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
