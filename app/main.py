"""The app's entry: theme, navigation, and the choice of a bundle."""

from base64 import b64encode
from pathlib import Path

import streamlit as st

from natscope.app import garbage
from natscope.app.theme import PALETTES, style
from natscope.app.views import backdoor, coreset, explain, frame, front, paper, tags, telling
from natscope.app.views.banner import banner
from natscope.app.views.notice import errors_shown

_FOLDER = Path(__file__).parent
# As text, for Streamlit drops a file when a page is drawn again before it has named it, and the browser misses it.
_ICON = "data:image/png;base64," + b64encode((_FOLDER / "icon.png").read_bytes()).decode()
EARLIER = {  # addresses of pages that are tabs now
    "attribute": explain.attributed,
    "compare": explain.compared,
    "counterfactual": explain.removed,
    "curves": explain.drawn,
    "results": paper.measured,
    "methods": paper.explained,
}


def main() -> None:
    """Draw the page that the address names."""
    garbage.tidy()
    st.set_page_config(page_title="natscope", page_icon=_ICON, layout="wide")
    st.logo(str(_FOLDER / "logo.svg"), size="large")
    palette = PALETTES["dark" if st.context.theme.type == "dark" else "light"]
    st.html(f"<style>{style(palette)}</style>")
    pages = [
        st.Page(front.page, title="Start", url_path="start", default=True),
        st.Page(explain.page, title="Explain", url_path="explain"),
        st.Page(backdoor.page, title="Backdoor", url_path="backdoor"),
        st.Page(coreset.page, title="Coreset", url_path="coreset"),
        st.Page(paper.page, title="Paper", url_path="paper"),
        *(st.Page(draw, title="natscope", url_path=path, visibility="hidden") for path, draw in EARLIER.items()),
    ]
    chosen = st.navigation(pages, position="top")
    with errors_shown():
        banner()
        frame.arrive(chosen.url_path)
        tags.keep()
        telling.tell(frame.place(), tags.of_bundle)  # where a link leads; drawing it may take a while
        chosen.run()
        telling.tell(frame.place(), tags.of_bundle)


if __name__ in ("__main__", "__mp_main__"):
    main()
