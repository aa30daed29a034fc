"""Single chats, streams and batches use the same key, proxy and certificates, and no redirect."""

import datetime
import ipaddress
import ssl

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from retort.engines import find_engine
from retort.errors import StageError
from tests.support.misbehaving import (
    SECRET,
    UNKNOWN,
    anthropic_body,
    asking,
    openai_body,
    running,
    settings,
)
from tests.support.providers import PROVIDERS

both = pytest.mark.parametrize("name", list(PROVIDERS))
# Keys of the providers' own clients, which must never reach an endpoint of the job.
FOREIGN = ("OPENAI_ADMIN_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS")
EVENTS = {
    "openai": 'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n',
    "anthropic": 'event: content_block_delta\ndata: {"type": "content_block_delta"}\n\n',
}


@pytest.fixture(autouse=True)
def _key(monkeypatch, tmp_path):
    for name in PROVIDERS:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))


def watched(name: str):
    """A provider of chats, streams and batches; what it sees is (way, headers) of each request."""
    seen = []

    @web.middleware
    async def note(request, handler):
        way = "batch" if "batches" in request.path or "files" in request.path else "chat"
        if way == "chat" and (await request.json()).get("stream"):
            way = "stream"
        seen.append((way, request.headers.copy()))
        return await handler(request)

    async def chat(request):
        body = await request.json()
        if body.get("stream"):
            return web.Response(text=EVENTS[name], content_type="text/event-stream")
        text = body["messages"][-1]["content"]
        return web.json_response({**openai_body(text), **anthropic_body(text)})

    app = PROVIDERS[name]().app()
    app.middlewares.append(note)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/messages", chat)
    return app, seen


def texts_of(name: str, url: str, state, **runtime) -> list[str]:
    """The answers to a single chat and to one in a batch, stored whole; a stream is timed first."""
    module = find_engine(name)
    live = module.open_engine(settings(url, **runtime))
    assert live.timed(asking("s")[0]).first_token_seconds is not None
    batch = module.open_engine(settings(url, str(state), batch=True, **runtime))
    answers = [*live.generate(asking("a")), *batch.generate(asking("b"))]
    assert all(UNKNOWN.items() <= answer.raw["body"].items() for answer in answers)
    return [module.parse(answer.id, answer.raw).text for answer in answers]


@both
def test_the_jobs_key_goes_every_way_and_no_other_key_ever_does(name, tmp_path, monkeypatch):
    for variable in FOREIGN:
        monkeypatch.setenv(variable, "x-other: sk-another-key")
    app, seen = watched(name)
    header = {"openai": "Authorization", "anthropic": "x-api-key"}[name]
    with running(app) as url:
        assert texts_of(name, url, tmp_path / "with") == ["to a", "to b"]
        num_with_key = len(seen)
        monkeypatch.delenv(f"{name.upper()}_API_KEY")
        assert texts_of(name, url, tmp_path / "without") == ["to a", "to b"]
    assert {way for way, _ in seen[:num_with_key]} == {"chat", "stream", "batch"}
    for index, (_, headers) in enumerate(seen):
        key = headers.get(header, "").removeprefix("Bearer ")
        assert key == (SECRET if index < num_with_key else "")
        if name == "anthropic":
            assert "Authorization" not in headers and headers["anthropic-version"]
    foreign = [value for _, headers in seen for value in headers.values() if "another" in value]
    assert foreign == []


@both
def test_no_redirect_is_followed(name, tmp_path):
    app, seen = watched(name)

    async def elsewhere(request):
        return web.Response(status=307, headers={"Location": f"{url}{request.path[3:]}"})

    redirecting = web.Application()
    redirecting.router.add_route("*", "/{path:.*}", elsewhere)
    module = find_engine(name)
    with running(app) as url, running(redirecting) as first:
        live = module.open_engine(settings(first))
        assert live.timed(asking("s")[0]).first_token_seconds is None
        (answer,) = live.generate(asking("a"))
        assert module.parse("a", answer.raw).cause.startswith("http_307")
        batch = module.open_engine(settings(first, str(tmp_path), batch=True))
        with pytest.raises(StageError, match="http_307"):
            list(batch.generate(asking("b")))
    assert seen == []


@both
@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(name, variable, tmp_path, monkeypatch):
    for other in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    app, seen = watched(name)
    with running(app) as url:
        monkeypatch.setenv(variable, url.removesuffix("/v1"))
        assert texts_of(name, "http://teacher.invalid/v1", tmp_path) == ["to a", "to b"]
    assert {way for way, _ in seen} == {"chat", "stream", "batch"}
    assert {headers["Host"] for _, headers in seen} == {"teacher.invalid"}


def certificate(path):
    """Writes a self-signed certificate of 127.0.0.1 with its key; returns the server's context."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "retort")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


@both
def test_certificates_of_ones_own_are_trusted_where_ssl_cert_file_names_them(
    name, tmp_path, monkeypatch
):
    app, _ = watched(name)
    with running(app, certificate(tmp_path / "cert.pem")) as url:
        engine = find_engine(name).open_engine(settings(url, max_attempts=1))
        (answer,) = engine.generate(asking("a"))
        assert "CERTIFICATE_VERIFY_FAILED" in answer.raw["error"]["message"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert texts_of(name, url, tmp_path / "state") == ["to a", "to b"]
