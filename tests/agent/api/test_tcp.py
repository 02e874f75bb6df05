"""The API over TCP: who is let in and who is not, with and without TLS, and what browsers are told."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.agent.conftest import AgentProcess, agent_process

from kybernate.agent.api.tcp import open_endpoint
from kybernate.agent.api.tokens import TokenFile
from kybernate.model.errors import BadInput
from kybernate.model.layout import StateDirectory
from kybernate.settings import ApiSettings, parse

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["code"])


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    """An agent without a GPU that listens on a free port of the loopback."""
    yield from agent_process(
        settings="agent:\n  api: {listen: '127.0.0.1:0', hosts: [box.example]}\n", simulated_gpu=False
    )


@pytest.fixture(scope="module")
def token(agent: AgentProcess) -> str:
    return agent.state.token.read_text().strip()


def ask(
    agent: AgentProcess,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    url = agent.client.node().url
    assert url is not None
    where = urlsplit(url)
    assert where.hostname is not None
    connection = (
        http.client.HTTPConnection(where.hostname, where.port, timeout=20)
        if tls is None
        else http.client.HTTPSConnection(where.hostname, where.port, timeout=20, context=tls)
    )
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_token_is_made_for_its_user_alone(agent: AgentProcess, token: str) -> None:
    assert agent.state.token.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 40


def test_with_the_token_the_whole_api_answers(agent: AgentProcess, token: str) -> None:
    assert json.loads(ask(agent, "/v1/node", headers=bearer(token)).body)["pid"] == agent.pid
    body = json.dumps({"name": "by-tcp", "argv": ["id", "-u"], "directory": "/", "environment": dict(os.environ)})
    assert ask(agent, "/v1/workloads", method="POST", headers=bearer(token), body=body.encode()).status == 201
    agent.client.wait("by-tcp")
    assert agent.output("by-tcp") == f"{os.geteuid()}\n"
    assert b"kybernate_workloads" in ask(agent, "/metrics", headers=bearer(token)).body


@pytest.mark.parametrize(
    "path", ["/v1/node", "/v1/workloads", "/v1/stream", "/metrics", "/openapi.json", "/none", "/../etc/passwd"]
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"Authorization": ""}, id="empty"),
        pytest.param({"Authorization": "Bearer "}, id="no token"),
        pytest.param({"Authorization": "Bearer wrong"}, id="wrong"),
        pytest.param({"Authorization": "Bearer \xff\xfe"}, id="no text"),
        pytest.param({"Authorization": "Basic YTpi"}, id="another scheme"),
        pytest.param({"Cookie": "token=x", "X-Token": "x"}, id="elsewhere"),
    ],
)
def test_without_it_nothing_does(agent: AgentProcess, path: str, headers: dict[str, str]) -> None:
    answer = ask(agent, path, headers=headers)
    assert (answer.status, answer.error) == (401, "no_token")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_in_the_address_lets_nobody_in(agent: AgentProcess, token: str) -> None:
    assert ask(agent, f"/v1/node?token={token}").status == 401


def test_orders_without_it_change_nothing(agent: AgentProcess) -> None:
    for method, path in (("POST", "/v1/node/shutdown"), ("POST", "/v1/workloads"), ("DELETE", "/v1/workloads/x")):
        assert ask(agent, path, method=method, body=b" " * 10_000_000).status == 401
    assert agent.client.node().pid == agent.pid


def test_the_page_is_for_everybody_and_holds_nothing(agent: AgentProcess, token: str) -> None:
    page = ask(agent, "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert token.encode() not in page.body
    again = ask(agent, "/index.html", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert ask(agent, "/", method="POST").status == 401


def test_browsers_are_told_to_be_careful(agent: AgentProcess) -> None:
    for path in ("/", "/v1/node"):
        headers = ask(agent, path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        assert "set-cookie" not in headers
        assert headers["cache-control"] in ("no-store", "no-cache")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:7070", 200),
        ("[::1]:7070", 200),
        ("box.example", 200),
        (socket.gethostname(), 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_hosts(agent: AgentProcess, token: str, host: str, status: int) -> None:
    """A page of evil.example whose name leads to the loopback must get no answer, the dashboard's files neither."""
    assert ask(agent, "/v1/node", headers={**bearer(token), "Host": host}).status == status
    assert ask(agent, "/", headers={"Host": host}).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(
    agent: AgentProcess, token: str, headers: dict[str, str], status: int
) -> None:
    assert ask(agent, "/v1/node", headers={**bearer(token), **headers}).status == status


def test_a_new_token_holds_at_once(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "token")
    file.make()
    first = file.path.read_text().strip()
    assert file.matches(first)
    second = "another-token-of-some-length"
    file.path.write_text(second + "\n")
    assert file.matches(second)
    assert not file.matches(first)
    file.path.chmod(0o644)
    file.path.write_text(first + "x")
    assert not file.matches(first + "x")
    file.path.unlink()
    assert not file.matches(second)
    assert not file.matches("")


def test_a_token_that_was_opened_to_others_lets_nobody_in(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "token")
    file.make()
    token = file.path.read_text().strip()
    assert file.matches(token)
    file.path.chmod(0o640)
    assert not file.matches(token)
    file.path.chmod(0o600)
    assert file.matches(token)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"a-token-of-some-length\n", 0o640, "others may read"),
        (b"short\n", 0o600, "no token"),
        (b"two words in it is no token\n", 0o600, "no token"),
        (b"\xff" * 40, 0o600, "no token"),
        (b"", 0o600, "no token"),
    ],
)
def test_files_that_are_no_token(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(BadInput, match=says):
        TokenFile(path).make()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "no TLS"),
        ({"listen": "[::]:0"}, "no TLS"),
        ({"listen": "no-such-host.invalid:0"}, "no such host"),
        ({"listen": "192.0.2.1:0", "plaintext": True}, "can't listen"),
        ({"listen": "127.0.0.1:0", "token_file": "/no/such/directory/token"}, "token file"),
        ({"listen": "127.0.0.1:0", "tls": {"certificate": "/no/cert", "key": "/no/key"}}, "/no/cert"),
    ],
)
async def test_what_should_not_be_listened_on(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        await open_endpoint(ApiSettings.model_validate(settings), StateDirectory(tmp_path))


async def test_plaintext_must_be_said(tmp_path: Path) -> None:
    settings = ApiSettings.model_validate({"listen": "0.0.0.0:0", "plaintext": True})
    endpoint = await open_endpoint(settings, StateDirectory(tmp_path))
    assert endpoint is not None
    endpoint.listener.close()


@pytest.mark.parametrize("listen", ["7070", "localhost", ":7070", "a:b", "::1:7070", "localhost:99999", "localhost:-1"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(BadInput, match=r"f:2: agent\.api\.listen"):
        parse(f"agent:\n  api: {{listen: '{listen}'}}\n", origin="f")


@dataclass(frozen=True)
class Authority:
    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        made = cls(directory, key, _certificate(name, key.public_key(), name, key, authority=True))
        (directory / f"{name}.pem").write_bytes(made.certificate.public_bytes(serialization.Encoding.PEM))
        return made

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.rfc4514_string().removeprefix("CN=")
        certificate = _certificate(name, key.public_key(), issuer, self.key, authority=False)
        files = (self.directory / f"{name}.crt", self.directory / f"{name}.key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        files[1].write_bytes(key.private_bytes(*encoding, plain))
        return files


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


@dataclass(frozen=True)
class Secured:
    agent: AgentProcess
    ours: Authority
    theirs: Authority


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """An agent with TLS, and an authority whose clients need no token."""
    directory = tmp_path_factory.mktemp("tls")
    ours, theirs = Authority.make(directory, "ours"), Authority.make(directory, "theirs")
    certificate, key = ours.issue("server")
    tls = f"{{certificate: {certificate}, key: {key}, client_ca: {directory}/ours.pem}}"
    settings = f"agent:\n  api: {{listen: '127.0.0.1:0', tls: {tls}}}\n"
    for agent in agent_process(settings=settings, simulated_gpu=False):
        yield Secured(agent, ours, theirs)


def trust(secured: Secured, *, shows: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(secured.ours.directory / "ours.pem"))
    if shows is not None:
        context.load_cert_chain(*shows)
    return context


def test_a_certificate_of_the_authority_needs_no_token(secured: Secured) -> None:
    shows = secured.ours.issue("client")
    assert ask(secured.agent, "/v1/node", tls=trust(secured, shows=shows)).status == 200
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    answer = ask(secured.agent, "/v1/node/shutdown", method="POST", headers=foreign, tls=trust(secured, shows=shows))
    assert answer.status == 403


def test_without_a_certificate_it_is_the_token(secured: Secured) -> None:
    assert ask(secured.agent, "/v1/node", tls=trust(secured)).status == 401
    token = secured.agent.state.token.read_text().strip()
    assert ask(secured.agent, "/v1/node", headers=bearer(token), tls=trust(secured)).status == 200


def test_a_foreign_certificate_ends_the_connection(secured: Secured) -> None:
    shows = secured.theirs.issue("stranger")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(secured.agent, "/v1/node", tls=trust(secured, shows=shows))


def test_plain_http_gets_no_answer_there(secured: Secured) -> None:
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(secured.agent, "/v1/node")
