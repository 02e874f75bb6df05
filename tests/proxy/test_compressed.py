"""Bodies that come compressed: the model in them is found, they are passed on as they came, and no bomb goes off."""

from __future__ import annotations

import contextlib
import gzip
import random
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.rig import Rig

from kybernate.model.messages import Endpoint, Load
from kybernate.proxy.codings import STEP, BadCoding, Decoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "X-GZIP": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a head": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
    "br": ("br", brotli.compress),
}
every = pytest.mark.parametrize("coding", list(CODINGS))


def decoded(coding: str, body: bytes, size_max: int = 64 << 20) -> bytes:
    decoder = Decoder(coding, body, size_max=size_max)
    while not decoder.step():
        pass
    return decoder.decoded


@every
@given(data=st.binary(max_size=5000), times=st.integers(1, 700))
def test_what_was_compressed_comes_out(coding: str, data: bytes, times: int) -> None:
    name, compress = CODINGS[coding]
    assert decoded(name, compress(data * times)) == data * times


@every
def test_a_bomb_ends_at_the_limit(coding: str) -> None:
    """And no step of it makes more than a little over one step's worth."""
    name, compress = CODINGS[coding]
    decoder = Decoder(name, compress(bytes(100 << 20)), size_max=8 << 20)
    sizes = [0]

    def explode() -> None:
        while True:
            decoder.step()
            sizes.append(decoder.size)

    with pytest.raises(OverflowError):
        explode()
    assert max(behind - before for before, behind in pairwise(sizes)) <= 2 * STEP
    assert decoder.size <= 10 << 20


@every
@given(noise=st.binary(max_size=200), cut=st.integers(0, 10_000))
def test_noise_and_what_is_cut_off_is_an_error(coding: str, noise: bytes, cut: int) -> None:
    name, compress = CODINGS[coding]
    whole = compress(b"something that is said" + noise)
    with pytest.raises(BadCoding):
        decoded(name, whole[: cut % len(whole)])
    for body in (noise, whole + b"\0" + noise):
        with contextlib.suppress(BadCoding):
            assert len(decoded(name, body)) < 1 << 20


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_streams_behind_each_other_are_one_body(coding: str) -> None:
    name, compress = CODINGS[coding]
    assert decoded(name, compress(b'{"model":') + compress(b'"m"}')) == b'{"model":"m"}'


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_of_very_many_empty_streams_is_refused(coding: str) -> None:
    """It would keep the worker busy for hours."""
    name, compress = CODINGS[coding]
    with pytest.raises(BadCoding, match="more than 4096 streams"):
        decoded(name, compress(b"") * 1_000_000)
    assert decoded(name, compress(b"x") * 4096) == b"x" * 4096


@every
def test_a_step_takes_little_of_a_large_body(coding: str) -> None:
    """What can't be used yet is copied at each step: of all that is there it took a tenth of a second each time."""
    name, compress = CODINGS[coding]
    data = random.Random(1).randbytes(4 << 20)
    decoder = Decoder(name, compress(data), size_max=8 << 20)
    steps = 1
    while not decoder.step():
        steps += 1
    assert decoder.decoded == data
    assert steps >= len(data) // (64 << 10)


def test_a_window_larger_than_http_allows_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 25, zstd.CompressionParameter.content_size_flag: 0}
    made = zstd.ZstdCompressor(options=options)
    with pytest.raises(BadCoding):
        decoded("zstd", made.compress(bytes(100)) + made.flush())


def test_the_model_in_a_compressed_body(rig: Rig) -> None:
    rig.serve()
    body = b'{"messages":"' + b"x" * 3_000_000 + b'","model":"m"}'
    with rig.client() as client:
        for coding, compress in CODINGS.values():
            sent = compress(body)
            seen = client.ask("POST", "/v1/chat/completions", sent, content_encoding=coding).json()
            assert (seen["size"], seen["body"]) == (len(sent), sent.decode("latin-1")), "as it came"
            assert dict(seen["fields"])["content-encoding"] == coding
        form = b'--X\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--X--'
        kind = "multipart/form-data; boundary=X"
        answer = client.ask("POST", "/v1/audio", gzip.compress(form), content_type=kind, content_encoding="gzip")
        assert answer.status == 200
        assert client.ask("POST", "/v1/x", b'{"model":"m"}', content_encoding="identity").status == 200


def test_the_servers_own_name_in_a_compressed_body(rig: Rig) -> None:
    """It can only be put there decoded."""
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("gpt",), rewrite_model="real"))
    rig.open()
    with rig.client() as client:
        for coding, compress in CODINGS.values():
            seen = client.ask("POST", "/v1/x", compress(b'{"model":"gpt"}'), content_encoding=coding).json()
            assert seen["body"] == '{"model":"real"}'
            assert "content-encoding" not in dict(seen["fields"])


def test_codings_that_are_not_known_are_named(rig: Rig) -> None:
    server = rig.serve()
    for coding in ("compress", "gzip, br", "aws-chunked", "dcb"):
        with rig.client() as client:
            answer = client.ask("POST", "/v1/chat/completions", b'{"model":"m"}', content_encoding=coding)
            assert (answer.status, answer.code) == (415, "unsupported_coding")
            assert repr(coding) in answer.json()["error"]["message"]
            assert answer.fields["accept-encoding"] == "gzip, deflate, zstd, br"
    with rig.client() as client:
        assert client.ask("POST", "/svc/x", b"anything", content_encoding="compress").status == 200, (
            "not for us to read"
        )
    assert len(server.requests) == 1


def test_compressed_bodies_that_are_broken_or_too_large(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port), body_max=1 << 20)
    rig.open()
    named = b'{"model":"m","x":"%b"}'
    with rig.client() as client:
        for coding, compress in CODINGS.values():
            bomb = compress(named % (b"x" * (50 << 20)))
            assert len(bomb) < 1 << 20
            for body, status, code in (
                (bomb, 413, "body_too_large"),
                (b"no such thing", 400, "invalid_body"),
                (compress(named % b"x")[:-6], 400, "invalid_body"),
                (compress(b"{}"), 400, "invalid_body"),
                (compress(b'{"model":"other"}'), 404, "model_not_found"),
            ):
                answer = client.ask("POST", "/v1/x", body, content_encoding=coding)
                assert (answer.status, answer.code) == (status, code), (coding, body[:20])
        assert client.model("m").status == 200, "the connection goes on"
    assert len(server.requests) == 1


def test_what_is_decoded_counts_as_kept(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port), held_bytes_max=1 << 20)
    rig.open()
    with rig.client() as client:
        body = gzip.compress(b'{"model":"m","x":"' + b"x" * (2 << 20) + b'"}')
        assert client.ask("POST", "/v1/x", body, content_encoding="gzip").code == "held_full"
        for _ in range(3):
            body = gzip.compress(b'{"model":"m","x":"' + b"x" * 900_000 + b'"}')
            assert client.ask("POST", "/v1/x", body, content_encoding="gzip").status == 200, "and no longer"
    assert rig.agent.of(Load)
