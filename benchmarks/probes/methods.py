"""Print the merge methods that there are, each with the example of its declaration."""

from __future__ import annotations

import inspect
import json

from mergegraph.methods import all_methods


def main() -> None:
    """Print JSON."""
    examples = {name: inspect.cleandoc(method.example) for name, method in all_methods().items()}
    print(json.dumps({"examples": examples}))


if __name__ == "__main__":
    main()
