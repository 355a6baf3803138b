"""The app's entry: theme, navigation, and the choice of a bundle."""

from pathlib import Path

import streamlit as st

from natscope.app import garbage
from natscope.app.views import attribute, backdoor, compare, coreset, counterfactual, curves, methods, results
from natscope.app.views.banner import banner
from natscope.app.views.notice import errors_shown

_FOLDER = Path(__file__).parent


def main() -> None:
    """Draw the page that the address names."""
    garbage.tidy()
    st.set_page_config(page_title="natscope", page_icon=str(_FOLDER / "icon.png"), layout="wide")
    st.logo(str(_FOLDER / "logo.svg"), size="large")
    st.html("<style>" + STYLE + "</style>")
    pages = [
        st.Page(attribute.page, title="Attribute", url_path="attribute", default=True),
        st.Page(compare.page, title="Compare", url_path="compare"),
        st.Page(backdoor.page, title="Backdoor", url_path="backdoor"),
        st.Page(counterfactual.page, title="Counterfactual", url_path="counterfactual"),
        st.Page(curves.page, title="Information curves", url_path="curves"),
        st.Page(coreset.page, title="Coreset", url_path="coreset"),
        st.Page(results.page, title="Results", url_path="results"),
        st.Page(methods.page, title="Methods", url_path="methods"),
    ]
    chosen = st.navigation(pages, position="top")
    with errors_shown():
        banner()
        chosen.run()


STYLE = """
.block-container, [data-testid="stMainBlockContainer"] { padding-top: 4.2rem; padding-bottom: 3rem; max-width: 1500px; }
h1 { font-size: 1.9rem !important; padding: 0 !important; letter-spacing: -0.01em; }
h3 { font-size: 1.05rem !important; padding: 0.4rem 0 0.2rem !important; }
"""

if __name__ in ("__main__", "__mp_main__"):
    main()
