"""Forms: the model's name is found and replaced while the audio behind it comes in, and nothing of that is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Endpoint, Load
from kybernate.proxy.forms import BadForm, ModelField

KIND = "multipart/form-data; boundary=XX"
PATH = "/v1/audio/transcriptions"


def part(name: str, value: bytes, *more: str) -> bytes:
    fields = "".join(f"\r\n{field}" for field in more)
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{fields}\r\n\r\n'.encode() + value + b"\r\n"


END = b"--XX--\r\n"
FILE = part("file", b"\0\r\n--X\r\n\r\nmodel\xff" * 20, "Content-Type: audio/wav")


def found(form: bytes, cuts: list[int] = []) -> ModelField:  # noqa: B006 - not changed
    field = ModelField(KIND.encode())
    at = 0
    for cut in [*sorted(cut % (len(form) + 1) for cut in cuts), len(form)]:
        field.feed(form[at:cut])
        at = cut
    field.end()
    return field


@given(
    st.lists(
        st.sampled_from([FILE, part("prompt", b""), part("x", b'name="model"'), b"--XX\r\nnonsense\r\n"]), max_size=4
    ),
    st.integers(0, 4),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_the_name_is_found_in_whatever_pieces_the_form_comes(parts: list[bytes], at: int, cuts: list[int]) -> None:
    before, behind = parts[:at], parts[at:]
    form = b"".join((*before, part("model", b"m\xc3\xa4rz"), *behind, END))
    field = found(form, cuts)
    assert field.name == "märz"
    assert field.with_name(form, "a longer name") == b"".join((*before, part("model", b"a longer name"), *behind, END))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_pieces_make_no_difference(noise: bytes, cuts: list[int]) -> None:
    form = (
        noise.replace(b"\1", b"\r\n--XX")
        .replace(b"\2", b"\r\n\r\n")
        .replace(b"\3", b"\r\nContent-Disposition: form-data; name=model")
    )

    def outcome(cuts: list[int]) -> str:
        try:
            return repr(found(form, cuts).name)
        except BadForm as e:
            return str(e)

    assert outcome(cuts) == outcome([])


@pytest.mark.parametrize(
    "form",
    [
        part("model", b"a") + part("model", b"a") + END,
        part("model", b"a" * 2000) + END,
        FILE + END,
        part("x", b"") * 300 + part("model", b"a") + END,
        b"",
    ],
)
def test_forms_that_name_no_model(form: bytes) -> None:
    with pytest.raises(BadForm):
        found(form)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=XX",
        'Multipart/Form-Data;charset="a; boundary=no" ; BOUNDARY="XX"; ',
        "multipart/form-data; xboundary=no; boundary=XX",
    ],
)
def test_the_boundary_is_the_one_that_servers_take(kind: str) -> None:
    field = ModelField(kind.encode())
    field.feed(part("model", b"m") + END)
    assert field.name == "m"


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/mixed; boundary=XX",
        "multipart/form-data; xboundary=XX",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a; boundary=XX",
        "multipart/form-data; boundary=" + "X" * 71,
        'multipart/form-data; boundary="XX',
        r'multipart/form-data; boundary="X\X"',
        "multipart/form-data, boundary=XX",
    ],
)
def test_a_boundary_that_servers_may_read_otherwise_is_refused(kind: str) -> None:
    with pytest.raises(BadForm):
        ModelField(kind.encode())


def test_a_model_in_a_head_that_is_too_long_to_be_looked_at_is_refused() -> None:
    """Its server may read it all the same, and take it for the one that counts."""
    hidden = part("x", b"")[:4] + b"\r\nx: " + b"y" * 3000 + part("model", b"other")[4:]
    with pytest.raises(BadForm, match="head of more than"):
        found(part("model", b"m") + hidden + END)
    assert found(part("model", b"m") + b"--XX--" + bytes(5000)).name == "m", "what is behind the end is no part"


def test_a_part_that_says_its_length_says_the_new_one() -> None:
    form = FILE + part("model", b"m", "Content-Length: 1") + END
    assert found(form).with_name(form, "real") == FILE + part("model", b"real", "Content-Length: 4") + END


def test_the_servers_own_name_in_a_form(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("whisper-1",), rewrite_model="openai/whisper-large-v3"))
    rig.open()
    with rig.client() as client:
        for before, behind in ((FILE, b""), (b"", FILE), (part("language", b"de"), FILE)):
            form = before + part("model", b"whisper-1") + behind + END
            wanted = before + part("model", b"openai/whisper-large-v3") + behind + END
            seen = client.ask("POST", PATH, form, content_type=KIND).json()
            assert seen["body"].encode("latin-1") == wanted
            assert dict(seen["fields"])["content-length"] == str(len(wanted))
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (form[:150], form[150:])) + b"0\r\n\r\n"
            head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {KIND}\r\ntransfer-encoding: chunked\r\n\r\n"
            client.send(head.encode() + chunks)
            assert client.answer().json()["body"].encode("latin-1") == wanted


@pytest.mark.parametrize("chunked", [False, True])
def test_the_audio_behind_the_name_passes_through(rig: Rig, eventually: Eventually, chunked: bool) -> None:
    """More of it than may be kept, and the server has what was sent before the rest is there."""
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("whisper-1",), rewrite_model="real"), held_bytes_max=200_000)
    rig.open()
    first, size = part("model", b"whisper-1") + b'--XX\r\ncontent-disposition: form-data; name="file"\r\n\r\n', 8 << 20
    behind = b"\r\n" + END
    whole = len(first) + size + len(behind)
    piece = lambda data: b"%x\r\n%b\r\n" % (len(data), data) if chunked else data  # noqa: E731
    length = "transfer-encoding: chunked" if chunked else f"content-length: {whole}"
    with rig.client() as client:
        client.send(
            f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {KIND}\r\n{length}\r\n\r\n".encode() + piece(first)
        )
        eventually(lambda: server.control()["raw"])
        for _ in range(size >> 16):
            client.send(piece(bytes(1 << 16)))
        client.send(piece(behind) + (b"0\r\n\r\n" if chunked else b""))
        answer = client.answer()
        assert answer.status == 200
        assert answer.json()["size"] == whole - len("whisper-1") + len("real")
        assert client.model("m").status == 200, "the connection goes on"


def test_a_second_model_behind_the_audio_reaches_no_server_in_whole(rig: Rig) -> None:
    server = rig.serve()
    form = part("model", b"m") + FILE + part("model", b"other") + END
    with rig.client() as client:
        client.send(request("POST", PATH, form, content_type=KIND)[: -len(form)] + form[:200])
        rig.agent.wait(Load, lambda load: load.in_flight == 1)
        client.send(form[200:])
        assert client.answer().status == 400
        assert client.ended
    assert server.requests == []


def test_a_form_waits_for_its_model(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("whisper-1",), rewrite_model="real"))
    form = part("model", b"whisper-1") + part("file", bytes(300_000)) + END
    with rig.client() as client:
        head, body = request("POST", PATH, form, content_type=KIND)[: -len(form)], form
        client.send(head + body[:5000])
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        client.send(body[5000:])
        rig.open()
        assert client.answer().json()["size"] == len(form) - 5
