"""The style of all pages comes with the HTML that a browser gets first."""

import asyncio
import gzip

import pytest
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, StreamingResponse

from natscope.app.first_page import STYLE, FirstPage
from tests.conftest import finished

_PAGE = "<html><head><title>natscope</title></head><body>Here, and no other </head></body></html>"
_STYLED = _PAGE.replace("</head>", f"<style>{STYLE}</style></head>", 1)
_BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8", "accept-encoding": "gzip"}


def _asked(app, method="GET", **headers):
    """Return status, headers and body of an answer."""
    sent = []
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def receive():
        await asyncio.Event().wait()  # nobody leaves

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/", "query_string": b"", "headers": raw, "extensions": {}}
    finished(FirstPage(app)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


async def _compressing(scope, receive, send):
    wanted = dict(scope["headers"]).get(b"accept-encoding") == b"gzip"
    body = gzip.compress(_PAGE.encode()) if wanted else _PAGE
    await HTMLResponse(body, headers={"content-encoding": "gzip"} if wanted else {})(scope, receive, send)


def test_a_page_has_the_style_in_its_head_once_and_all_of_it_arrives():
    status, headers, body = _asked(_compressing, **_BROWSER)
    assert (status, body.decode()) == (200, _STYLED)
    assert int(headers["content-length"]) == len(body)


def test_a_page_in_parts_and_one_that_a_browser_has_are_whole(tmp_path):
    async def in_parts():
        for part in (_PAGE[:20], _PAGE[20:]):
            yield part

    assert _asked(StreamingResponse(in_parts(), media_type="text/html"), **_BROWSER)[2].decode() == _STYLED
    file = tmp_path / "index.html"
    file.write_text(_PAGE)
    first = _asked(FileResponse(file), **_BROWSER)
    again = _asked(FileResponse(file), **_BROWSER, range="bytes=0-3", if_none_match=first[1].get("etag", "*"))
    assert [(status, body.decode()) for status, _, body in (first, again)] == [(200, _STYLED)] * 2
    assert not {"etag", "last-modified", "accept-ranges"} & first[1].keys()  # those of the file, which is another


@pytest.mark.parametrize(
    ("answer", "method", "accept"),
    [
        (PlainTextResponse("</head>"), "GET", "text/html"),
        (HTMLResponse("</head>", 404), "GET", "text/html"),
        (HTMLResponse("</head>"), "GET", "*/*"),
        (HTMLResponse("</head>"), "POST", "text/html"),
    ],
)
def test_all_else_is_as_it_was(answer, method, accept):
    assert _asked(answer, method, accept=accept)[2] == b"</head>"
