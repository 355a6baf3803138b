"""Who gets an answer of the server, and what a page of its may load."""

import asyncio
import http.client
import re
import signal
import socket
from collections import defaultdict
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import streamlit
from click.testing import CliRunner
from playwright.sync_api import expect
from streamlit import config
from streamlit.proto.BackMsg_pb2 import BackMsg

from natscope.app import guard
from natscope.app.cli.commands import natscope
from natscope.app.guard import MAX_UPLOADS, Guard, is_allowed
from natscope.app.listen import LOOPBACK, Listening, listening
from natscope.app.serve import BUNDLES, settings
from natscope.core.errors import QueryError
from tests.app.conftest import serving
from tests.conftest import finished, one_sentence

pytestmark = pytest.mark.browser
_PATH = "/tools/natscope"
_INSIDE = ["/", "/methods", "/_stcore/health", "/_stcore/host-config", "/static/nothing.js", "/media/nothing", "/%00"]
_PLACES = ["/", "/_stcore/stream", *(_PATH + place for place in _INSIDE)]
_STREAM = f"{_PATH}/_stcore/stream"
_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "bmF0c2NvcGUgbmF0cyE9PQ==",
}
_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", e => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""
_LOADED = """source => new Promise(done => {
  const image = document.createElement("img");
  image.onload = () => done(true);
  image.onerror = () => done(false);
  image.src = source;
  document.body.append(image);
})"""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(bundle_path, log):
    """Serve from a stranger's folder, whose .streamlit would open the server and set environment variables."""
    settings = log.parent / ".streamlit"
    settings.mkdir()
    (settings / "config.toml").write_text("[server]\nscriptHealthCheckEnabled = true\ncookieSecret = 'known'\n")
    (settings / "secrets.toml").write_text("PYTHONPATH = ")
    with serving(bundle_path, log, "--allowed-host", "Natscope.Example.", path=_PATH, folder=log.parent) as address:
        yield address


@pytest.fixture
def ask(server):
    """Return a function that asks for a path as a stranger would, and gives the status, the headers and the text."""
    own = urlsplit(server).netloc

    def request(path, host=own, method="GET", **headers):
        connection = http.client.HTTPConnection(own, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in ({} if host is None else {"Host": host} | headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, b"" if answer.status == 101 else answer.read()
        finally:
            connection.close()

    return request


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8501", "localhost.evil.example", "10.0.0.1", "", "[", "a@b"]
)
def test_a_host_that_is_rebound_gets_no_page_and_no_websocket(ask, host):
    for path in _PLACES:
        status, _, text = ask(path, host=host)
        assert status == 400, path
        assert text.startswith(b"This server answers to its own names alone.")
    assert ask(_STREAM, host=host, **_UPGRADE, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:1", "http://127.0.0.1", "null", "http://["]
)
def test_a_page_of_another_origin_gets_no_websocket_and_cannot_ask(ask, origin):
    assert ask(_STREAM, **_UPGRADE, Origin=origin)[0] == 403
    assert ask(f"{_PATH}/_stcore/health", Origin=origin)[0] == 403
    assert ask(f"{_PATH}/_stcore/upload_file/a/b", method="PUT", Origin=origin)[0] == 403


def test_nobody_is_told_how_many_sessions_there_are(ask):
    for path in ("_stcore/metrics", "auth/login", "auth/logout", "oauth2callback"):
        assert ask(f"{_PATH}/{path}")[0] == 404


def test_settings_and_secrets_of_the_working_directory_are_not_read(ask, log):
    assert b"<html" in ask(f"{_PATH}/_stcore/script-health-check")[2]  # the page that an unknown path gets
    assert ask(f"{_PATH}/_stcore/agent/interact", method="POST")[0] in (403, 404)
    assert "secrets" not in log.read_text()


def test_a_name_that_is_allowed_gets_a_page_and_a_websocket(ask):
    for host in ("natscope.example", "natscope.example:443"):
        assert ask(f"{_PATH}/", host=host)[0] == 200
        assert ask(_STREAM, host=host, **_UPGRADE, Origin=f"https://{host}")[0] == 101


def test_its_own_pages_and_programs_get_a_websocket(ask, server):
    port = urlsplit(server).port
    assert ask(_STREAM, **_UPGRADE, Origin=f"http://localhost:{port}")[0] == 101
    assert ask(_STREAM, host=f"127.0.0.1:{port}", **_UPGRADE, Origin=f"http://127.0.0.1:{port}")[0] == 101
    assert ask(_STREAM, **_UPGRADE)[0] == 101


@pytest.mark.parametrize("kind", [0x81, 0x82])  # of text, of bytes
def test_messages_that_are_none_of_a_page_are_a_line_of_the_log_at_most(server, ask, log, kind):
    before, place = len(log.read_text()), urlsplit(server)
    lines = [
        f"GET {_STREAM} HTTP/1.1",
        f"Host: {place.netloc}",
        *(f"{name}: {text}" for name, text in _UPGRADE.items()),
    ]
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert connection.recv(12) == b"HTTP/1.1 101"
        connection.sendall(bytes([kind, 0x80 | 3, 0, 0, 0, 0]) + b"abc")  # with a mask of zeros
        while connection.recv(2**16):  # until the server closes it
            pass
    assert ask(f"{_PATH}/")[0] == 200  # and goes on
    assert "Traceback" not in log.read_text()[before:]


@pytest.mark.parametrize("error", [RuntimeError, KeyError, TypeError])
def test_a_connection_that_breaks_the_app_is_closed_with_a_line_in_the_log(caplog, error):
    async def app(scope, receive, send):
        raise error("bytes")

    guarded = Guard(app, hosts=LOOPBACK, any_address=False, policy="")
    with caplog.at_level("INFO"):
        finished(guarded({"type": "websocket", "headers": [(b"host", b"localhost")]}, None, None))
    (record,) = caplog.records
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("asked", "led"), [("start?q=test%3A3&m=4", "./?q=test%3A3&m=4"), ("start", "./"), ("start/", "../")]
)
def test_the_first_page_is_found_by_its_name_too(ask, asked, led):
    status, headers, _ = ask(f"{_PATH}/{asked}")
    assert (status, headers["Location"]) == (307, led)


@pytest.mark.parametrize(
    ("asked", "led"),
    [
        ("explain/nonsense?q=test%3A3", "../explain?q=test%3A3"),
        ("explain/a/", "../../explain"),
        ("explain/", None),
        ("media/picture.png", None),
        ("_stcore/health", None),
    ],
)
def test_what_lies_below_a_page_leads_to_it(ask, asked, led):
    status, headers, _ = ask(f"{_PATH}/{asked}", **{"Sec-Fetch-Dest": "document"})
    assert (status == 307, headers["Location"] if status == 307 else None) == (led is not None, led)
    assert ask(f"{_PATH}/{asked}", **{"Sec-Fetch-Dest": "iframe"})[0] != 307  # of a component


def test_an_error_on_a_page_links_to_nobody():
    assert settings(Listening("localhost", "127.0.0.1", 8501, (), ""))["client.showErrorLinks"] is False


def test_every_answer_allows_its_own_origin_alone(ask):
    answers = [ask(path) for path in _PLACES]
    answers += [ask("/", host="evil.example"), ask("/", Origin="http://evil.example"), ask("/", method="DELETE")]
    for _, headers, _ in answers:
        policy = headers.get_all("Content-Security-Policy")
        assert len(policy) == 1
        sources = {source for directive in policy[0].split("; ") for source in directive.split()[1:]}
        keywords = {"'self'", "'none'", "'unsafe-inline'", "data:", "blob:"}
        assert all(source in keywords or re.fullmatch(r"'sha256-[\w+/=]{44}'", source) for source in sources)
        assert "default-src 'self'" in policy[0]
        assert "script-src 'self' blob: 'sha256-" in policy[0]
        assert policy[0].endswith("frame-ancestors 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"


def test_one_visitor_too_many_is_refused_until_another_leaves(monkeypatch):
    monkeypatch.setattr(guard, "MAX_VISITORS", 1)
    scope = {"type": "websocket", "headers": [(b"host", b"localhost")]}
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def session(scope, receive, send):
        if not sent:
            sent.append("inside")
            await guarded(scope, None, send)  # while this one is open
        await send({"type": "websocket.accept"})

    guarded = guard.Guard(session, hosts=["localhost"], any_address=False, policy="")
    finished(guarded(scope, None, send))
    finished(guarded(scope, None, send))
    assert sent == ["inside", "websocket.close", "websocket.accept", "websocket.accept"]


def test_a_page_loads_nothing_from_elsewhere(browser, server):
    context = browser.new_context()
    context.add_init_script(_VIOLATIONS)
    page = context.new_page()
    page.goto(server)
    link = page.get_by_role("link", name="Debug a prediction").evaluate("link => link.href")
    assert link.startswith(f"{server}/explain?bundle=")
    page.goto(link)
    expect(page.get_by_role("button", name="JSON")).to_be_visible(timeout=60_000)
    # Streamlit tries whether there is WebAssembly for its 64-bit numbers, and does without.
    assert set(page.evaluate("window.violations")) <= {"script-src wasm-eval"}
    own = page.locator("img").first.get_attribute("src")
    assert page.evaluate(_LOADED, own)
    assert not page.evaluate(_LOADED, "http://203.0.113.1/pixel.png")
    assert "img-src http://203.0.113.1/pixel.png" in page.evaluate("window.violations")
    page.evaluate("fetch('http://203.0.113.1/').catch(() => 0)")
    assert "connect-src http://203.0.113.1/" in page.evaluate("window.violations")
    context.close()


def test_what_listening_means_is_said_beyond_this_machine_alone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert not any(listening(host, free).exposed for host in ("localhost", "127.0.0.1", "127.0.0.2"))
    for host in ("0.0.0.0", "0"):
        at = listening(host, free, path="/a/b/")
        assert at.exposed
        assert at.everywhere
        assert f"port {free} of this machine" in at.meaning
        assert at.url == f"http://localhost:{free}/a/b"
    assert Listening("::1", "::1", 80, (), "").url == "http://[::1]:80"
    assert "http://192.0.2.7:80 " in Listening("192.0.2.7", "192.0.2.7", 80, (), "").meaning


def test_serving_beyond_this_machine_says_what_that_means(bundle_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    ran = {}
    monkeypatch.setattr(streamlit.App, "run", lambda self, config: ran.update(config))
    monkeypatch.setattr(config, "get_config_files", config.get_config_files)
    monkeypatch.setattr(config, "_main_script_path", config._main_script_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(BUNDLES, "")
    command = ["app", "--bundles", str(bundle_path), "--port", str(free), "--host"]
    reported = CliRunner().invoke(natscope, [*command, "0.0.0.0"], catch_exceptions=False)
    assert reported.output == listening("0.0.0.0", free).meaning + "\n"
    assert (ran["server.address"], ran["server.port"]) == ("0.0.0.0", free)
    assert CliRunner().invoke(natscope, [*command, "localhost"], catch_exceptions=False).output == ""
    assert ran["server.address"] == "127.0.0.1"


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host", "", "x" * 300, "a\x1b[31m", "\0"])
def test_a_host_that_is_not_this_machine_is_one_sentence(host):
    with pytest.raises(QueryError, match=rf"{re.escape(repr(host))}( \([A-Z][^()]+\))?: --host") as caught:
        listening(host, 8501)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("name", ["http://a.example", "a.example:443", "a.example/b", "", "*", "a b", "a\n"])
def test_a_name_to_answer_to_that_is_none_is_one_sentence(name):
    with pytest.raises(QueryError, match="--allowed-host"):
        listening("localhost", 8501, (name,))


@pytest.mark.parametrize("path", ["a b", "a//b", "../a", "a?b", "\u00e9"])
def test_a_path_that_is_none_is_one_sentence(path):
    with pytest.raises(QueryError, match="--base-path"):
        listening("localhost", 8501, path=path)


@pytest.mark.parametrize(
    ("host", "any_address", "allowed"),
    [
        ("localhost:8501", False, True),
        ("LOCALHOST", False, True),
        ("localhost.", False, True),
        ("localhost..", False, False),
        ("[localhost]", False, False),
        ("[127.0.0.1", False, False),
        ("127.0.0.1", False, True),
        ("[::1]:8501", False, True),
        ("::1", False, False),
        ("localhost:port", False, False),
        ("localhost:99999999", False, False),
        ("evil.example@localhost", False, False),
        ("192.0.2.7:8501", False, False),
        ("192.0.2.7:8501", True, True),
        ("[2001:db8::7]", True, True),
        ("evil.example", True, False),
        ("", True, False),
    ],
)
def test_a_host_is_allowed_by_name_or_as_an_address(host, any_address, allowed):
    assert is_allowed(host, LOOPBACK, any_address=any_address) == allowed


@pytest.fixture
def put(monkeypatch):
    """Return a function that makes what sends an upload to a guarded app, and the statuses that were answered."""
    reported = []
    monkeypatch.setattr("natscope.app.guard.runtime", SimpleNamespace(exists=lambda: False))

    async def send(message):
        if message["type"] == "http.response.start":
            reported.append(message["status"])

    def guarded(app):
        guard = Guard(app, hosts=LOOPBACK, any_address=False, policy="")

        def upload(session, client):
            path, headers = f"/_stcore/upload_file/{session}/0", [(b"host", b"localhost")]
            scope = {"type": "http", "method": "PUT", "path": path, "headers": headers, "client": (client, 1)}
            return guard(scope, None, send)

        return upload

    return guarded, reported


def test_an_upload_that_does_not_arrive_is_ended(put, monkeypatch):
    monkeypatch.setattr(guard, "UPLOAD_SECONDS", 0.01)
    guarded, reported = put

    async def app(scope, receive, send):
        await asyncio.Event().wait()

    finished(guarded(app)("one", "192.0.2.7"))
    assert reported == [408]


def test_one_address_cannot_take_the_room_for_all_uploads(put):
    guarded, reported = put

    async def attack():
        gate = asyncio.Event()

        async def app(scope, receive, send):
            await gate.wait()
            await send({"type": "http.response.start", "status": 204, "headers": []})

        upload = guarded(app)
        coming = [asyncio.create_task(upload(f"s{number // 4}", "192.0.2.7")) for number in range(80)]
        await asyncio.sleep(0)
        assert reported == [503] * (80 - guard.MAX_COMING)
        other = asyncio.create_task(upload("honest", "192.0.2.8"))
        gate.set()
        await asyncio.gather(other, *coming)

    finished(attack())
    assert reported.count(204) == guard.MAX_COMING + 1


def test_a_body_that_no_parser_understands_is_one_line_of_the_log(put, caplog):
    guarded, reported = put

    async def app(scope, receive, send):
        raise AssertionError("no boundary")

    finished(guarded(app)("one", "192.0.2.7"))
    assert reported == [400]
    (record,) = caplog.records
    assert "AssertionError" in record.getMessage()
    assert record.exc_info is None


def test_no_message_clears_what_is_kept_for_all(monkeypatch):
    clearing, rerun = (
        BackMsg(**{kind: value}).SerializeToString() for kind, value in (("clear_cache", True), ("stop_script", True))
    )
    coming = iter([clearing, b"garbage", clearing, clearing, rerun])

    async def receive():
        return {"type": "websocket.receive", "bytes": next(coming)}

    async def visit():
        paced = guard._paced(receive)
        return [(await paced())["bytes"] for _ in range(2)]

    assert finished(visit()) == [b"garbage", rerun]


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        ("", "/start", 307),
        ("start", "/start", 200),
        ("start", "/start/start", 307),
        ("", "/x/start", 200),
    ],
)
def test_a_folder_may_have_the_first_pages_name(path, asked, status):
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    guarded = Guard(app, hosts=LOOPBACK, any_address=False, policy="", path=path)
    scope = {"type": "http", "method": "GET", "path": asked, "query_string": b"", "headers": [(b"host", b"localhost")]}
    finished(guarded(scope, None, send))
    assert sent[0]["status"] == status


def test_messages_of_a_visitor_pass_at_a_bounded_rate(monkeypatch):
    now, slept = 100.0, []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(guard.asyncio, "sleep", sleep)

    async def receive():
        return {"type": "websocket.receive"}

    async def flood():
        paced = guard._paced(receive)
        for _ in range(150):
            await paced()

    finished(flood())
    assert 45 <= len(slept) <= 55
    assert slept[-1] == pytest.approx(2.5, abs=0.2)


def test_the_files_of_a_session_are_bounded(monkeypatch):
    """Files count while they are on their way and while Streamlit holds them, whatever is deleted or refused."""
    stored, reported, gate = defaultdict(dict), [], asyncio.Event()
    held = SimpleNamespace(uploaded_file_mgr=SimpleNamespace(file_storage=stored))
    monkeypatch.setattr("natscope.app.guard.runtime", SimpleNamespace(exists=lambda: True, get_instance=lambda: held))

    async def app(scope, receive, send):
        *_, session, file = scope["path"].split("/")
        await gate.wait()
        if scope["method"] == "PUT" and session in ("one", "two"):  # Streamlit refuses sessions that are none
            stored[session][file] = b""

    async def send(message):
        if message["type"] == "http.response.start":
            reported.append(message["status"])

    def request(method, session, file):
        path = f"/_stcore/upload_file/{session}/{file}"
        return guard({"type": "http", "method": method, "path": path, "headers": [(b"host", b"localhost")]}, None, send)

    async def attack():
        coming = [asyncio.create_task(request("PUT", "one", file)) for file in range(10)]
        await asyncio.sleep(0)
        assert reported.count(429) == 10 - MAX_UPLOADS
        gate.set()
        await asyncio.gather(*coming)
        for number in range(300):
            await request("PUT", f"none-{number}", 0)
            await request("DELETE", "one", number)  # which this app refuses
            await request("PUT", "one", f"more-{number}")
        await request("PUT", "two", 0)

    guard = Guard(app, hosts=LOOPBACK, any_address=False, policy="")
    finished(attack())
    assert (len(stored["one"]), len(stored["two"])) == (MAX_UPLOADS, 1)
    assert guard._held().total() == MAX_UPLOADS + 1
