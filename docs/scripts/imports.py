"""Draw the imports between the parts of the project: `python docs/scripts/imports.py OUT.svg`.

A box is a package, or a module next to packages. No box imports a box of a higher layer, and no
modules import each other in a circle; `tests/test_layers.py` checks both.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__", "cli", "demo", "serve", "bulk", "bench", "doctor", "environment", "inspection"),
    ("export",),
    ("training",),
    ("compression",),
    ("loading",),
    ("data", "language_models", "model"),
    ("config", "recipes", "heartbeat", "output", "text_files", "version"),
    ("runtimes",),
)
"""Layers from top to bottom; a module may import from its own layer and from lower ones."""

COLORS = (
    "#c7d2fe", "#fde68a", "#bbf7d0", "#fed7aa", "#e9d5ff", "#fecaca", "#e5e7eb", "#bae6fd",
)  # fmt: skip
"""Fill colours of the boxes, by layer."""

Graph = dict[str, set[str]]


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Find the modules of the three packages, by name without `ds2deploy.`, and their files."""
    found = {}
    for folder in ("ds2deploy", "export", "runtimes"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[1:] if folder == "ds2deploy" else parts)
            found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def module_graph(files: Mapping[str, Path]) -> Graph:
    """Read the imports of each module, including those inside functions.

    Args:
        files: result of `module_files`.

    Returns:
        For each module, the modules of the project that it imports.
    """
    return {name: set(_imports(name, path, files)) for name, path in files.items()}


def _imports(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(
                    f"{path}:{node.lineno}: relative import; write the full name of the module"
                )
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and _is_import(node.func) and node.args:
            argument = node.args[0]
            targets = [str(argument.value)] if isinstance(argument, ast.Constant) else []
        else:
            continue
        for target in targets:
            found = _module_of(target, files)
            if found is not None and found != name:
                yield found


def _is_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def _module_of(target: str, files: Mapping[str, Path]) -> str | None:
    """Find the module that a dotted name is or is defined in; None for other projects' names."""
    if target != "ds2deploy" and not target.startswith("ds2deploy."):
        return None
    name = target.removeprefix("ds2deploy").lstrip(".")
    while name not in files and "." in name:
        name = name.rpartition(".")[0]
    return name if name in files else ""


def box_of(module: str) -> str:
    """Return the box in which a module is drawn."""
    wing, *rest = module.split(".")
    return f"{wing}.{rest[0]}" if wing in ("export", "runtimes") and rest else wing


def box_graph(modules: Graph) -> Graph:
    """Merge modules to boxes; modules that only define names have no box."""
    boxes: Graph = {}
    for module, targets in modules.items():
        box = box_of(module)
        if box in ("", "__main__", "version", "export", "runtimes"):
            continue
        found = boxes.setdefault(box, set())
        found.update(other for other in map(box_of, targets) if other not in (box, "", "version"))
    return boxes


def layer_of(module: str) -> int:
    """Find the index of a module's layer in `LAYERS`.

    Raises:
        ValueError: the module is in no layer.
    """
    wing = module.partition(".")[0]
    for row, names in enumerate(LAYERS):
        if wing in names:
            return row
    raise ValueError(f"{module}: belongs to no layer; add it to LAYERS in docs/scripts/imports.py")


def upward_imports(modules: Graph) -> list[str]:
    """List the imports from a lower layer to a higher one, as `module -> module`.

    The package `ds2deploy` itself imports names on first use, and is in no layer.
    """
    return [
        f"{module} -> {other or 'ds2deploy'}"
        for module, targets in sorted(modules.items())
        for other in sorted(targets)
        if module and (not other or layer_of(other) < layer_of(module))
    ]


def find_circle(graph: Graph) -> list[str]:
    """Find a circle of imports, with its first name repeated at the end; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if circle := walk(other, [*path, name]):
                return circle
        done.add(name)
        return []

    for name in sorted(graph):
        if circle := walk(name, []):
            return circle
    return []


def without_shortcuts(graph: Graph) -> Graph:
    """Remove the arrows that are implied by longer paths."""

    def reachable(name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for other in graph.get(waiting.pop(), ()):
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return found

    return {
        name: {o for o in targets if not any(o in reachable(p) for p in targets if p != o)}
        for name, targets in graph.items()
    }


def ranks(graph: Graph) -> list[list[str]]:
    """Arrange boxes in rows from top to bottom, each above its imports and within its layer."""
    height: dict[str, int] = {}
    floor = 0
    for row in reversed(range(len(LAYERS))):
        names = [name for name in graph if layer_of(name) == row]

        def above(name: str, names: list[str] = names, floor: int = floor) -> int:
            if name not in height:
                inner = [above(other) for other in graph[name] if other in names]
                height[name] = max(inner, default=floor - 1) + 1
            return height[name]

        floor = max([floor - 1, *map(above, names)]) + 1
    rows: list[list[str]] = [[] for _ in range(floor)]
    for name in sorted(graph):
        rows[floor - 1 - height[name]].append(name)
    return rows


def _ordered(rows: list[list[str]], graph: Graph) -> list[list[str]]:
    """Order each row by the mean position of the neighbours, so that few arrows cross."""
    neighbours: Graph = {name: set(targets) for name, targets in graph.items()}
    for name, targets in graph.items():
        for other in targets:
            neighbours[other].add(name)
    for _ in range(20):
        place = {name: (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
        for row in rows:
            means = {n: _mean([place[o] for o in sorted(neighbours[n])], place[n]) for n in row}
            row.sort(key=lambda name, means=means: (means[name], name))  # type: ignore[misc]
            place.update({name: (i + 0.5) / len(row) for i, name in enumerate(row)})
    return rows


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def draw(graph: Graph) -> str:
    """Draw boxes and arrows as SVG, without arrows that are implied by longer paths.

    Args:
        graph: graph of boxes, without circles.
    """
    shown = without_shortcuts(graph)
    rows = _ordered(ranks(graph), shown)
    width, row_height, box_height = 1120, 64, 28
    boxes = {}
    for y, row in enumerate(rows):
        gap = width / len(row)
        for x, name in enumerate(row):
            size = min(gap - 12, max(84.0, 7.4 * len(name) + 18))
            boxes[name] = (gap * (x + 0.5), 24 + y * row_height, size)
    height = 24 + len(rows) * row_height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>',
    ]
    for name, targets in sorted(shown.items()):
        for other in sorted(targets):
            x1, y1, _ = boxes[name]
            x2, y2, _ = boxes[other]
            y1 += box_height
            bend = min(40.0, (y2 - y1) / 2)
            parts.append(
                f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
                f'{x2:.0f} {y2:.0f}" fill="none" stroke="#94a3b8" marker-end="url(#tip)"/>'
            )
    for name, (x, y, size) in sorted(boxes.items()):
        parts.append(
            f'<rect x="{x - size / 2:.0f}" y="{y}" width="{size:.0f}" height="{box_height}" rx="6" '
            f'fill="{COLORS[layer_of(name)]}" stroke="#475569"/>'
            f'<text x="{x:.0f}" y="{y + 18}" text-anchor="middle">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main(out: str) -> None:
    """Write the picture, or exit with the circle of imports that prevents it."""
    boxes = box_graph(module_graph(module_files()))
    if circle := find_circle(boxes):
        sys.exit(f"modules import each other in a circle: {' -> '.join(circle)}")
    Path(out).write_text(draw(boxes), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
