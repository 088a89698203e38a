"""Time mergekit's planning of a merge: everything before the first tensor is read.

A script for mergekit's own environment, where nothing of this repository is installed.
"""

import json
import sys
import time


def main() -> None:
    """Plan once and print JSON."""
    started = time.perf_counter()
    import yaml
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    imported = time.perf_counter()
    plan, out = sys.argv[1:]
    options = MergeOptions(quiet=True)
    with open(plan, encoding="utf-8") as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    architecture = get_architecture_info(config, options)
    cache = LoaderCache()
    cache.setup(options=options)
    for model in config.referenced_models():
        cache.get(model)
    planner = MergePlanner(
        config, architecture, options=options, out_model_config=_model_out_config(config, architecture)
    )
    targets = planner.plan_to_disk(out_path=out)
    planned = time.perf_counter()
    Executor(targets=targets, math_device="cpu", storage_device="cpu")
    done = time.perf_counter()
    times = {"import": imported - started, "compile": planned - imported, "schedule": done - planned}
    print(json.dumps({**times, "outputs": len(targets)}))


if __name__ == "__main__":
    main()
