"""Parts of the pictures that the scripts of this folder draw as SVG."""

from __future__ import annotations

from html import escape

INK, FAINT, LINE = "#0f172a", "#475569", "#94a3b8"
BLUE, GREEN, AMBER, VIOLET, GREY = "#bae6fd", "#bbf7d0", "#fde68a", "#e9d5ff", "#e5e7eb"
PALE, HATCHED = "#f8fafc", "url(#kept)"

WIDTH = 1000
BIG, MIDDLE, SMALL = 19, 17, 15
"""Font sizes: of the title, of names, of the rest."""


def text(
    x: float,
    y: float,
    words: str,
    size: int,
    anchor: str = "middle",
    color: str = INK,
    bold: bool = False,
) -> str:
    """Write words at a place; `anchor` is start, middle or end."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{color}"{weight}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, radius: float = 6) -> str:
    """Draw a box with its upper left corner at a place."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{FAINT}" stroke-width="0.8"/>'
    )


def dashes(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw a dashed line."""
    line = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    return f'<path d="{line}" stroke="{LINE}" stroke-dasharray="3 3" fill="none"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw an arrow."""
    line = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    return f'<path d="{line}" stroke="{FAINT}" fill="none" marker-end="url(#tip)"/>'


def document(parts: list[str], height: float) -> str:
    """Wrap the parts; the white ground keeps them readable on a dark page."""
    ground = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" rx="8" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{FAINT}"/></marker>'
        '<pattern id="kept" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><path d="M0 0V6" stroke="{INK}" stroke-width="2.4"/>'
        "</pattern></defs>",
    )
    return "\n".join([*ground, *parts, "</svg>", ""])
