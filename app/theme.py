"""The colours of natscope: of pages, charts and files."""

from dataclasses import dataclass, fields

# Roles that a chart names instead of a colour; the page or the file resolves it.
ACCENT, MUTED = "accent", "muted"


@dataclass(frozen=True)
class Palette:
    """The colours of a light or a dark page, as hex."""

    accent: str
    muted: str
    link: str
    text: str
    background: str
    raised: str
    border: str

    def colour(self, name: str) -> str:
        """Return the colour of a role; any other text is itself a colour."""
        return str(getattr(self, name)) if name in {field.name for field in fields(self)} else name


LIGHT = Palette(
    accent="#0c6478",
    muted="#6b7280",
    link="#0c6478",
    text="#1c2430",
    background="#fbfaf7",
    raised="#f0eee8",
    border="#d9d5cb",
)
DARK = Palette(
    accent="#5cc3d6",
    muted="#a8b3bd",
    link="#7fd3e2",
    text="#e8e6e1",
    background="#12161c",
    raised="#1b222b",
    border="#323c48",
)
PALETTES = {"light": LIGHT, "dark": DARK}

# Okabe and Ito's colours, which colour-blind people can tell apart, the blue a little lighter for the black letter on
# it: the frames of images, whose letters say the same.
FRAMES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0080C7", "#B8A800")
FRAME = "#9AA1A9"  # of those beyond: their letters alone tell them apart
# The kinds of points on a map: told apart on light and dark pages, also by colour-blind people.
CATEGORIES = (
    *("#0086fc", "#b48b19", "#e76396", "#416f62", "#8f00ff"),
    *("#639d5c", "#af3495", "#6e671d", "#9085d1", "#a617c2"),
)
_RAMP = ("#5a5adb", "#b8407f", "#c27700")  # equally light, so that both ends are visible on white and on black


def ramp(count: int) -> list[str]:
    """Return colours, as hex, in a visible order, for values of one quantity, from small to large."""
    return [_between(position / max(1, count - 1)) for position in range(count)]


def streamlit_theme() -> dict[str, str]:
    """Return Streamlit's options `theme.…`."""
    names = {
        "primaryColor": "accent",
        "backgroundColor": "background",
        "secondaryBackgroundColor": "raised",
        "textColor": "text",
        "borderColor": "border",
        "linkColor": "link",
    }
    return {f"{kind}.{name}": p.colour(role) for kind, p in PALETTES.items() for name, role in names.items()}


def style(palette: Palette) -> str:
    """Return CSS for text that Streamlit draws too faintly, and for tables and formulas wider than a phone."""
    on_accent = '[data-testid="stBaseButton-primary"], [data-testid="stMultiSelect"] [data-tag] *'
    captions = '[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p'
    wide = '[data-testid="stMarkdownContainer"] table, .katex-display'
    return (
        f"{on_accent} {{ color: {palette.background}; }}\n{captions} {{ color: {palette.muted}; opacity: 1; }}\n"
        f"{wide} {{ display: block; max-width: 100%; overflow: auto hidden; }}\n"
    )


def _between(share: float) -> str:
    position = min(int(2 * share), 1)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _RAMP[position : position + 2]]
    part = 2 * share - position
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(*ends, strict=True))
