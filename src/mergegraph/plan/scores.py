"""Score files: how much each expert of each layer is worth, as JSON, YAML or CSV.

JSON and YAML hold a mapping of layers to lists of scores, or a list of such lists for layers 0, 1, … in which
null stands for a layer without experts. A line of CSV holds a layer and its scores; the first line may be
a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from mergegraph.graph.node import Origin
from mergegraph.plan.fields import read_number
from mergegraph.plan.source import Located, Problems, load_yaml

Scores = Mapping[int, tuple[float, ...]]

_SHAPE = "write LAYER: [scores], with layers counted from 0"


def read_scores(text: str, file: str) -> Scores:
    """Read a score file; its format follows from the end of its name.

    Raises:
        PlanError: with everything that is wrong, in line order.
    """
    problems = Problems()
    suffix = PurePath(file).suffix.lower()
    if suffix == ".csv":
        scores = _from_csv(text, file, problems)
    elif suffix in (".json", ".yml", ".yaml"):  # YAML contains JSON
        scores = _from_tree(load_yaml(text, file, problems), problems)
    else:
        scores = {}
        hint = "give a file that ends in .json, .yml, .yaml or .csv"
        problems.add("the format of the scores is not known", Origin(file, 1), hint)
    if not scores and not problems.found:
        problems.add("there are no scores", Origin(file, 1), _SHAPE)
    problems.raise_if_any()
    return scores


def best(scores: Scores, count: int) -> dict[int, tuple[int, ...]]:
    """Return the `count` experts of each layer with the highest scores, in their old order.

    Of experts with equal scores the earlier ones are taken.
    """
    kept = {}
    for layer, values in scores.items():
        ranked = sorted(range(len(values)), key=lambda expert: (-values[expert], expert))
        kept[layer] = tuple(sorted(ranked[:count]))
    return kept


def _from_tree(root: Located, problems: Problems) -> Scores:
    if root.entries is not None:
        rows: Iterable[tuple[str, Located]] = [(key, entry.value) for key, entry in root.entries.items()]
    elif root.items is not None:
        rows = [(str(n), item) for n, item in enumerate(root.items) if item.value is not None]
    else:
        problems.add(f"scores must be a mapping or a list, not {root.kind()}", root.origin, _SHAPE)
        return {}
    scores: dict[int, tuple[float, ...]] = {}
    for layer, row in rows:
        if not row.items:
            message = f"the scores of layer {layer} must be a list that is not empty"
            problems.add(message, row.origin, _SHAPE)
        else:
            _add(scores, layer, row.items, row.origin, problems)
    return scores


def _from_csv(text: str, file: str, problems: Problems) -> Scores:
    scores: dict[int, tuple[float, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        cells, origin = [cell.strip() for cell in line.split(",")], Origin(file, number)
        if not any(cells) or (number == 1 and not cells[0].isdecimal()):
            continue
        row = tuple(Located(cell, origin) for cell in cells[1:])
        if row:
            _add(scores, cells[0], row, origin, problems)
        else:
            problems.add(f"there are no scores after the layer {cells[0]!r}", origin, _SHAPE)
    return scores


def _add(
    scores: dict[int, tuple[float, ...]],
    layer: str,
    row: tuple[Located, ...],
    origin: Origin,
    problems: Problems,
) -> None:
    read = [read_number("a score", item, problems) for item in row]
    if not layer.isdecimal():
        problems.add(f"the layer {layer!r} is not a number", origin, _SHAPE)
    elif int(layer) in scores:
        problems.add(f"layer {layer} is there twice", origin, "remove one of them")
    else:
        scores[int(layer)] = tuple(score for score in read if score is not None)
