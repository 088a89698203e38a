"""The whole model as one picture: inputs on the left, one box per group of like layers on the right.

Colours stand in attributes, so any SVG viewer shows them; browsers in dark mode override them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from mergegraph.graph.graph import Graph
from mergegraph.graph.outline import Group, moved, outline
from mergegraph.tensorspec import format_bytes

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#5fb3ae", "#c9a227", "#9d755d")
WIDTH, MARGIN, HEAD = 860, 16, 64
SOURCE_WIDTH, SOURCE_HEIGHT = 230, 48
GROUP_X, GROUP_HEIGHT, STEP = 356, 66, 82
MAX_RIBBONS = 80
"""With more, ribbons would be a hairball; the coloured bar of each group still says its inputs."""

_SANS = "font-family='system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif'"
_MONO = "font-family='ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace'"
_DARK = (
    "<style>@media (prefers-color-scheme: dark) {"
    ".page{fill:#12161d}.box{fill:#1c222c;stroke:#3a4453}.ink{fill:#e8ecf2}.dim{fill:#9aa6b6}}</style>"
)


def svg(graph: Graph, title: str, sources: Mapping[str, str]) -> str:
    """Return the overview of `graph` as a standalone SVG document.

    Args:
        graph: what to draw.
        title: heading.
        sources: short label of each source key.
    """
    return overview(outline(graph), title, sources, style=_DARK)


def printable(text: str) -> str:
    """Escape `text` for XML, with the control characters replaced that XML cannot hold."""
    clean = "".join(c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(clean, quote=True)


def colours(sources: Mapping[str, str]) -> dict[str, str]:
    """Give each source key its colour."""
    return {key: PALETTE[i % len(PALETTE)] for i, key in enumerate(sources)}


def overview(groups: Sequence[Group], title: str, sources: Mapping[str, str], style: str = "") -> str:
    """Draw `groups`; each box has ``data-group="<position>"``."""
    height = HEAD + max(len(groups) * STEP, len(sources) * (SOURCE_HEIGHT + 16)) + MARGIN
    tensors = sum(group.count for group in groups)
    total = format_bytes(sum(group.nbytes for group in groups))
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
        f"height='{height}' {_SANS} role='img'>",
        f"<title>{printable(title)}</title>{style}",
        f"<rect class='page' width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        _text(MARGIN, 28, _short(title, 70), "ink", 18, weight=600),
        _text(MARGIN, 48, f"{_count(tensors, 'tensor')}, {total}", "dim", 13),
    ]
    tops = _source_tops(len(sources), len(groups))
    parts += _ribbons(groups, sources, tops)
    parts += _source_boxes(groups, sources, tops)
    for i, group in enumerate(groups):
        parts += _group_box(i, group, sources)
    return "\n".join([*parts, "</svg>"])


def _source_tops(sources: int, groups: int) -> list[float]:
    """Spread the inputs along the upper part of the picture: near what they feed, and in sight."""
    room = max(min(groups * STEP, 700), sources * (SOURCE_HEIGHT + 16))
    step = room / max(sources, 1)
    return [HEAD + i * step + (step - SOURCE_HEIGHT - 16) / 2 for i in range(sources)]


def _ribbons(groups: Sequence[Group], sources: Mapping[str, str], tops: Sequence[float]) -> Iterator[str]:
    if sum(len(group.sources) for group in groups) > MAX_RIBBONS:
        return
    most = max((n for group in groups for n in group.sources.values()), default=0) or 1
    tint = colours(sources)
    for i, group in enumerate(groups):
        for j, key in enumerate(sources):
            if key not in group.sources:
                continue
            y0 = tops[j] + SOURCE_HEIGHT / 2
            y1 = HEAD + i * STEP + GROUP_HEIGHT * (j + 1) / (len(sources) + 1)
            x0, x1 = MARGIN + SOURCE_WIDTH, GROUP_X
            mid = (x0 + x1) / 2
            width = 1.5 + 6 * group.sources[key] / most
            yield (
                f"<path class='ribbon' data-from='{j}' data-to='{i}' fill='none' stroke='{tint[key]}' "
                f"stroke-opacity='.5' stroke-width='{width:.1f}' "
                f"d='M{x0} {y0:.1f}C{mid} {y0:.1f} {mid} {y1:.1f} {x1} {y1:.1f}'/>"
            )


def _source_boxes(
    groups: Sequence[Group], sources: Mapping[str, str], tops: Sequence[float]
) -> Iterator[str]:
    tint = colours(sources)
    for (key, label), y in zip(sources.items(), tops, strict=True):
        used = sum(group.sources.get(key, 0) for group in groups)
        yield f"<g class='source'><title>{printable(label)}</title>"
        yield _box(MARGIN, y, SOURCE_WIDTH, SOURCE_HEIGHT)
        yield _bar(MARGIN, y, SOURCE_HEIGHT, tint[key])
        yield _text(MARGIN + 18, y + 21, _short(label, 24), "ink", 13, mono=True, weight=600)
        yield _text(MARGIN + 18, y + 38, f"{format_bytes(used)} used", "dim", 12)
        yield "</g>"


def _group_box(i: int, group: Group, sources: Mapping[str, str]) -> Iterator[str]:
    y, width = HEAD + i * STEP, WIDTH - GROUP_X - MARGIN - 8
    stacked = len(group.layers) > 1
    yield f"<g class='group' data-group='{i}' tabindex='0' role='button'>"
    yield f"<title>{printable(group.label)}</title>"
    for offset in (8, 4) if stacked else ():
        yield _box(GROUP_X + offset, y + offset, width, GROUP_HEIGHT)
    yield _box(GROUP_X, y, width, GROUP_HEIGHT)
    yield from _share_bar(group, sources, y)
    yield _text(GROUP_X + 20, y + 22, _short(group.label, 42), "ink", 14, mono=True, weight=600)
    kinds = " · ".join(
        kind if len(group.kinds) == 1 else f"{n} {kind}" for kind, n in sorted(group.kinds.items())
    )
    yield _text(GROUP_X + width - 12, y + 22, kinds, "dim", 12, anchor="end")
    size = _count(len(group.layers[0].tensors), "tensor")
    size += f" × {len(group.layers)} layers" if stacked else ""
    each = f" ({format_bytes(group.layers[0].nbytes)} each)" if stacked else ""
    yield _text(GROUP_X + 20, y + 40, f"{size} · {format_bytes(group.nbytes)}{each}", "dim", 12)
    ops = " · ".join(
        [*(f"{op} {n:,}" for op, n in group.ops.items()), *filter(None, [moved(group, sources)])]
    )
    yield _text(GROUP_X + 20, y + 57, ops if len(ops) <= 68 else f"{ops[:67]}…", "dim", 12)
    yield "</g>"


def _share_bar(group: Group, sources: Mapping[str, str], y: float) -> Iterator[str]:
    """The left edge of a group: how its input bytes divide among the sources."""
    total = sum(group.sources.values()) or 1
    tint, top = colours(sources), y
    for key in sources:
        length = GROUP_HEIGHT * group.sources.get(key, 0) / total
        if length:
            yield f"<rect x='{GROUP_X}' y='{top:.1f}' width='8' height='{length:.1f}' fill='{tint[key]}'/>"
        top += length


def _box(x: float, y: float, width: float, height: float) -> str:
    return (
        f"<rect class='box' x='{x}' y='{y:.1f}' width='{width}' height='{height}' rx='6' "
        "fill='#f7f8fa' stroke='#c9d0da'/>"
    )


def _bar(x: float, y: float, height: float, colour: str) -> str:
    return f"<rect x='{x}' y='{y:.1f}' width='8' height='{height}' rx='3' fill='{colour}'/>"


def _text(
    x: float,
    y: float,
    text: str,
    role: str,
    size: int,
    *,
    mono: bool = False,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    fill = "#1d2430" if role == "ink" else "#5c6878"
    family = f" {_MONO}" if mono else ""
    return (
        f"<text class='{role}' x='{x}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' "
        f"text-anchor='{anchor}' fill='{fill}'{family}>{printable(text)}</text>"
    )


def _short(text: str, length: int) -> str:
    """Cut the middle out of a text that is too long: both ends of a path say something."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
