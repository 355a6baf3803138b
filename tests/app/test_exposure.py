"""Who gets an answer of the server, and what a page of its may load."""

import http.client
import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from app.guard import LOOPBACK, is_allowed
from tests.app.conftest import serving

pytestmark = pytest.mark.browser
_PLACES = ["/", "/methods", "/_stcore/health", "/_stcore/host-config", "/static/nothing.js", "/media/nothing", "/%00"]
_STREAM = "/_stcore/stream"
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
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture
def ask(server):
    """Give a function that asks for a path as a stranger would, and gives the status, the headers and the text."""
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
    assert ask(_STREAM, host=host, **_UPGRADE, Origin=f"http://{host}")[0] == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:1", "http://127.0.0.1", "null", "http://["]
)
def test_a_page_of_another_origin_gets_no_websocket_and_cannot_ask(ask, origin):
    assert ask(_STREAM, **_UPGRADE, Origin=origin)[0] == 403
    assert ask("/_stcore/health", Origin=origin)[0] == 403
    assert ask("/_stcore/upload_file/a/b", method="PUT", Origin=origin)[0] == 403


def test_its_own_pages_and_programs_get_a_websocket(ask, server):
    port = urlsplit(server).port
    assert ask(_STREAM, **_UPGRADE, Origin=server)[0] == 101
    assert ask(_STREAM, host=f"127.0.0.1:{port}", **_UPGRADE, Origin=f"http://127.0.0.1:{port}")[0] == 101
    assert ask(_STREAM, **_UPGRADE)[0] == 101


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
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"


def test_a_page_loads_nothing_from_elsewhere(browser, server):
    context = browser.new_context()
    context.add_init_script(_VIOLATIONS)
    page = context.new_page()
    page.goto(server)
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


@pytest.mark.parametrize(
    ("host", "any_address", "allowed"),
    [
        ("localhost:8501", False, True),
        ("LOCALHOST", False, True),
        ("localhost.", False, True),
        ("127.0.0.1", False, True),
        ("[::1]:8501", False, True),
        ("::1", False, False),
        ("localhost:port", False, True),
        ("192.0.2.7:8501", False, False),
        ("192.0.2.7:8501", True, True),
        ("[2001:db8::7]", True, True),
        ("evil.example", True, False),
        ("", True, False),
    ],
)
def test_a_host_is_allowed_by_name_or_as_an_address(host, any_address, allowed):
    assert is_allowed(host, LOOPBACK, any_address=any_address) == allowed
