"""The style of all pages, in the HTML that a browser gets first: one that came with the content would move it."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CONDITIONS = ("accept-encoding", "if-modified-since", "if-none-match", "range")  # what asks for other than the whole
_OF_THE_FILE = ("etag", "last-modified", "accept-ranges", "content-length")  # which is not what is sent


class FirstPage:
    """Middleware that adds the style to every HTML page; all else passes as it is."""

    def __init__(self, app: ASGIApp) -> None:
        """Name the app that answers."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request."""
        asked = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "GET" else {}
        if "text/html" not in asked.get("accept", ""):
            await self._app(scope, receive, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _CONDITIONS]
        begun: Message | None = None
        page = b""

        async def styled(message: Message) -> None:
            nonlocal begun, page
            if message["type"] == "http.response.start" and _is_page(message):
                begun = message
            elif begun is None:
                await send(message)
            elif message["type"] == "http.response.body":
                page += message.get("body", b"")
                if not message.get("more_body"):
                    page = page.replace(b"</head>", f"<style>{STYLE}</style></head>".encode(), 1)
                    headers = MutableHeaders(scope=begun)
                    for name in _OF_THE_FILE:
                        del headers[name]
                    headers["content-length"] = str(len(page))
                    await send(begun)
                    await send({"type": "http.response.body", "body": page})

        await self._app({**scope, "headers": kept}, receive, styled)


def _is_page(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")


# Streamlit's own rules come later, so those that differ from them are important. A page has its width from the start:
# that it is wide, Streamlit learns from the app. Headings have no link to themselves, which would be a stop of the Tab
# key each. Components that are never seen take no room, and parts whose script arrives later than what follows them
# have, from the start, at least the size of what they usually show. Titles of bundles are seen whole.
STYLE = """
[data-testid="stMainBlockContainer"] { padding: 4.2rem 1rem 3rem !important; max-width: 1500px !important; }
@media (min-width: 864px) {
  [data-testid="stMainBlockContainer"] { padding-left: 5rem !important; padding-right: 5rem !important; }
}
h1 { font-size: 1.9rem !important; padding: 0 !important; letter-spacing: -0.01em !important; }
h3 { font-size: 1.05rem !important; padding: 0.4rem 0 0.2rem !important; }
[data-testid="stHeaderActionElements"] a { display: none !important; }
.st-key-image_keys, .st-key-tags_kept, .st-key-results_jumps, [class*="_into_view"] { display: none !important; }
.st-key-image_bar { min-height: 9rem; }
.st-key-image_bar > .stElementContainer:first-child { min-height: 5.5rem; }
.st-key-ranking, .st-key-ranking_of_the_label { min-height: 8.25rem; }
.st-key-counterfactual_sheet { min-height: 6.75rem; }
.st-key-backdoor_trigger_patch { min-height: 15rem; }
.st-key-backdoor_step_bar { min-height: 3rem; }
[class*="st-key-coreset_sheet_"] { min-height: 3rem; }
.st-key-previous_image { min-width: 7rem !important; }
.st-key-next_image { min-width: 5.5rem !important; }
.st-key-shuffle, .st-key-enlarge_query { min-width: 4rem !important; }
.st-key-method, .st-key-target, .st-key-budget, .st-key-curves_count, .st-key-curves_largest, .st-key-curves_sigma2s,
.st-key-curves_fixed, .st-key-curves_others, .st-key-coreset_group, .st-key-coreset_count, .st-key-coreset_budget,
.st-key-coreset_method, .st-key-coreset_variant { min-height: 4.25rem; }
[role="listbox"]:is([aria-label="Bundle"], [aria-label="Model"]) [role="option"] div {
  white-space: normal !important; overflow-wrap: anywhere !important;
}
@media (min-width: 641px) {
  .stHorizontalBlock:has(> .stColumn .st-key-bundle) { flex-wrap: nowrap !important; }
  .stHorizontalBlock:has(> .stColumn .st-key-bundle) > .stColumn:not(:has(.st-key-bundle)) { min-width: 0 !important; }
  .stColumn:has(.st-key-bundle) { min-width: 22rem !important; }
  .stColumn:has([class*="st-key-results_about_"]) { align-self: flex-start; position: sticky; top: 4rem; }
}
@media (max-width: 640px) {
  .st-key-image_bar { min-height: 16.75rem; }
  .st-key-image_bar > .stElementContainer:first-child { min-height: 9.5rem; }
  .st-key-tab { min-height: 4.25rem; }
  .st-key-backdoor_trigger_patch { min-height: 13.25rem; }
  .st-key-counterfactual_sheet, [class*="st-key-coreset_sheet_"] { min-height: 8rem; }
}
"""
