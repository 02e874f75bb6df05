"""What the agent lends and takes back: open, close, drained, preempted; an agent that is gone and one that comes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time

from tests.conftest import Eventually
from tests.proxy.rig import PROGRAMS, Client, Rig, free_port, request

from kybernate.model.messages import Close, Drained, End, Endpoint, Hello, Load, Open

ASK = request("POST", "/v1/completions", b'{"model":"m"}')


def test_close_waits_for_what_is_in_flight_and_holds_what_comes(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as flying, rig.client() as idle, rig.client() as later:
        assert idle.model("m").status == 200
        flying.send(request("GET", "/svc/wait"))
        eventually(lambda: server.control()["waiting"] == 1)
        epoch = rig.close()
        later.send(ASK)
        rig.agent.wait(Load, lambda load: load.waiting == 1 and load.in_flight == 1)
        assert rig.agent.of(Drained) == []
        server.release()
        assert flying.answer().status == 200
        assert rig.agent.wait(Drained) == Drained("m", epoch)
        assert server.control()["connections"] == 0, "drained means that nothing is connected, on their side either"
        rig.open(waited_for="ram", seconds=1.0)
        answer = later.answer()
        assert (answer.status, answer.fields["x-kybernate-tier"]) == (200, "ram")
    rig.close()
    rig.agent.wait(Drained, count=2)
    assert [m.epoch for m in rig.agent.of(Drained)] == [epoch, rig.epoch]


def test_an_open_takes_a_close_back(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as flying, rig.client() as later:
        flying.send(request("GET", "/svc/wait"))
        eventually(lambda: server.control()["waiting"] == 1)
        rig.close()
        later.send(ASK)
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.open()
        assert later.answer().status == 200
        server.release()
        assert flying.answer().status == 200
        assert later.model("m").status == 200
    assert rig.agent.of(Drained) == []


def test_a_close_of_what_is_not_open_is_answered_too(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1))
    for number in range(2):
        rig.agent.send(Close("m", 7))
        assert rig.agent.wait(Drained, count=number + 1).epoch == 7


def test_preemption_cuts_off(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as silent, rig.client() as talking:
        silent.send(request("GET", "/svc/wait"))
        talking.send(request("GET", "/svc/events"))
        assert b"data: 0" in talking.until(b"\n\n\r\n")
        eventually(lambda: server.control()["waiting"] == 2)
        rig.close(preempt=True)
        answer = silent.answer()
        assert (answer.status, answer.code) == (502, "preempted")
        assert talking.ended, "it sees that its stream isn't whole"
    rig.agent.wait(Drained)
    eventually(lambda: server.control()["hung_up"] == 2)


def test_a_client_that_hangs_up_in_flight_cancels_upstream(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    client = rig.client()
    client.send(request("GET", "/svc/wait"))
    eventually(lambda: server.control()["waiting"] == 1)
    client.socket.close()
    eventually(lambda: server.control()["hung_up"] == 1)
    rig.agent.wait(Load, lambda load: load.ended == 1 and load.in_flight == 0)


def test_an_agent_that_is_gone_and_comes_back(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    rig.agent.first.append(Open("m", 99, None))  # what the next agent will say at once
    with rig.client() as client, rig.client() as flying:
        assert client.model("m").status == 200
        flying.send(request("GET", "/svc/wait"))
        eventually(lambda: server.control()["waiting"] == 1)
        epoch = rig.epoch
        rig.agent.stop()
        assert client.model("m").status == 200, "what is open is served without an agent"
        rig.agent.received.clear()
        rig.agent.start()
        hello = rig.agent.wait(Hello)
        assert (hello.pid, hello.open_epochs) == (rig.pid, {"m": epoch})
        load = rig.agent.wait(Load, lambda load: load.model == "m")
        assert (load.in_flight, load.epoch) == (1, epoch)
        server.release()
        assert flying.answer().status == 200
        rig.agent.wait(Load, lambda load: load.epoch == 99)


def test_what_is_held_stays_held_without_an_agent(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port))
    with rig.client() as client, rig.client() as brief:
        client.send(ASK)
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.agent.stop()
        assert brief.model("m", x_kybernate_max_wait="0.1").code == "hold_timeout"
        rig.agent.received.clear()
        rig.agent.first.append(Open("m", 5, None))
        rig.agent.start()
        load = rig.agent.wait(Load)
        assert load.waiting == 1
        assert client.answer().status == 200


def test_a_worker_whose_agent_can_never_come_back_ends(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client:
        assert client.model("m").status == 200
        rig.agent.stop()
        shutil.rmtree(rig.agent.path.parent)
        assert rig.started.wait(60) == 0
    assert server.control()["connections"] == 0


def test_a_worker_that_starts_before_its_agent(rig: Rig) -> None:
    server = rig.upstream()
    rig.agent.first = []
    rig.start()
    rig.agent.stop()
    rig.agent.start()
    rig.configure(Endpoint("m", server.port))
    rig.open()
    with rig.client() as client:
        assert client.model("m").status == 200


def test_words_that_nobody_knows(rig: Rig) -> None:
    server = rig.serve()
    rig.agent.send_raw(b'{"kind":"tomorrow","x":1}\nnonsense\n[]\n{"kind":"open"}\n')
    rig.agent.send(Open("unknown", 1, None))
    with rig.client() as client:
        assert client.model("m").status == 200
    assert len(server.requests) == 1


def test_the_end_lets_answers_end(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as flying, rig.client() as idle:
        assert idle.model("m").status == 200
        flying.send(request("GET", "/svc/events"))
        flying.until(b"\n\n")
        eventually(lambda: server.control()["waiting"] == 1)
        rig.agent.send(End(grace_s=20))
        assert idle.ended
        server.release()
        server_waits = eventually(lambda: server.control()["waiting"] == 1)
        assert server_waits
        server.release()
        assert b"0\r\n\r\n" in flying.rest()
    assert rig.started.wait(60) == 0


def test_the_end_cuts_off_what_takes_too_long(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as flying:
        flying.send(request("GET", "/svc/wait"))
        eventually(lambda: server.control()["waiting"] == 1)
        rig.agent.send(End(grace_s=0.2))
        assert flying.ended
        assert rig.started.wait(60) == 0


def test_idle_connections_that_the_server_closed_are_not_an_error(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client:
        for _ in range(30):
            assert client.model("m").status == 200
            server.control("/_close_idle")


def test_a_server_that_closes_while_it_is_asked(rig: Rig) -> None:
    """The race of every kept-alive connection: not one error, and not one request that arrives twice."""
    program = [sys.executable, str(PROGRAMS / "closing.py")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, told = map(int, server.stdout.readline().split())
        try:
            rig.configure(Endpoint("m", port))
            rig.open()
            pauses = random.Random(1)
            with rig.client() as client:
                for _ in range(1500):
                    assert client.model("m").status == 200
                    end = time.monotonic() + pauses.random() * 0.002
                    while time.monotonic() < end:
                        pass
            with Client(told) as counted:
                assert counted.rest() == b"1500"
        finally:
            server.kill()


def test_a_server_that_closes_without_an_answer(rig: Rig) -> None:
    """The request was read there: it must not be sent again."""
    server = rig.serve()
    with rig.client() as client:
        assert client.model("m").status == 200
        answer = client.ask("POST", "/svc/hang-up", b"{}")
        assert (answer.status, answer.code) == (502, "model_closed")
    assert sum(r["target"] == "/svc/hang-up" for r in server.requests) == 1


def test_a_server_that_dies_and_comes_back_elsewhere(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client:
        assert client.model("m").status == 200
        server.process.kill()
        server.process.wait()
        client.send(ASK)  # nobody listens: it waits for a connection
        rig.agent.wait(Load, lambda load: load.begun == 2 and load.in_flight == 1)
        rig.close()
        rig.agent.wait(Drained)
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        again = rig.upstream()
        rig.configure(Endpoint("m", again.port))
        rig.open(waited_for="start", seconds=2)
        answer = client.answer()
        assert (answer.status, answer.fields["x-kybernate-tier"]) == (200, "start")
        assert len(again.requests) == 1


def test_a_server_that_listens_late(rig: Rig) -> None:
    port = free_port()
    rig.configure(Endpoint("m", port))
    rig.open()
    with rig.client() as client:
        client.send(ASK)
        rig.agent.wait(Load, lambda load: load.in_flight == 1)
        rig.upstream("--port", str(port))
        assert client.answer().status == 200
