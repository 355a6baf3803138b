"""Take the pictures of the pages that the guide shows: `python -m docs.screenshots BUNDLES`.

Each page is seen at 1,280 pixels, light and dark, and on a phone.
"""

import io
from collections.abc import Callable
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Page

from benchmarks.browser import PATIENCE, chromium
from benchmarks.served import serving
from natscope.precompute.bundles.demo import TEXTS
from natscope.precompute.paths import home

_FOLDER = Path(__file__).parents[1] / "assets" / "screenshots"
_QUERY = "test:23"  # a mistake of the embedded data's network
_TEXTS = f"/explain?q=test:5&bundle={TEXTS}"
_COLOURS = 128  # of a picture's palette
_QUIET = 2000  # milliseconds after which a page counts as complete
_VIEWS = {"light": ("light", 1280, 1100), "dark": ("dark", 1280, 1100), "phone": ("light", 390, 844)}


def _explain(tab: str) -> str:
    return f"/explain?q={_QUERY}&tab={tab}"


def _inspect(page: Page) -> None:
    page.locator(".st-key-ranking .picture").first.click()
    _settle(page)
    _compute(page, "Who else relies on it?")
    page.get_by_role("dialog").locator(".st-key-reliant .picture").first.wait_for(timeout=1000 * PATIENCE)


def _inspect_words(page: Page) -> None:
    page.locator(".st-key-ranking .picture").first.click()
    _settle(page)


def _compute(page: Page, name: str) -> None:
    """Press what starts a computation, unless it was done for another picture."""
    if (button := page.get_by_role("button", name=name)).count():
        button.click()


def _retrain(page: Page) -> None:
    _compute(page, "Remove them and retrain")
    page.get_by_text("The network as it is").first.wait_for(timeout=1000 * PATIENCE)


def _curves(page: Page) -> None:
    _compute(page, "Compute the curves")
    _map(page)


def _map(page: Page) -> None:
    page.locator(".js-plotly-plot").first.wait_for(timeout=1000 * PATIENCE)


def _as_it_opens(page: Page) -> None:
    pass


_PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "start": ("/", _as_it_opens),
    "attribute": (_explain("attribution"), _as_it_opens),
    "inspector": (_explain("attribution"), _inspect),
    "compare": (_explain("compare"), _as_it_opens),
    "counterfactual": (_explain("remove"), _retrain),
    "curves": (_explain("curves"), _curves),
    "map": (_explain("map"), _map),
    "backdoor": ("/backdoor", _as_it_opens),
    "coreset": ("/coreset", _as_it_opens),
    "results": ("/paper", _as_it_opens),
    "methods": ("/paper?tab=methods", _as_it_opens),
    "texts": (_TEXTS, _as_it_opens),
    "words": (_TEXTS, _inspect_words),
}


@click.command()
@click.argument("bundles", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("names", nargs=-1)
def main(bundles: Path, names: tuple[str, ...]) -> None:
    """Take all pictures, or those of the pages that are named, of a folder with the embedded bundles."""
    with serving(bundles, home=home()) as app, chromium() as browser:
        for name in names or _PAGES:
            path, prepare = _PAGES[name]
            for kind, (theme, width, height) in _VIEWS.items():
                page = browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme=theme,  # type: ignore[arg-type]
                    reduced_motion="reduce",
                )
                page.goto(f"http://localhost:{app.port}{path}")
                _settle(page)
                prepare(page)
                _settle(page)
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(_FOLDER / f"{name}-{kind}.png", optimize=True)
                page.close()
                click.echo(f"{name}-{kind}.png")


def _settle(page: Page) -> None:
    idle = '[data-testid="stApp"][data-test-script-state="notRunning"]'
    page.wait_for_selector(idle, timeout=1000 * PATIENCE)
    page.wait_for_timeout(_QUIET)
    page.wait_for_selector(idle, timeout=1000 * PATIENCE)


if __name__ == "__main__":
    main()
