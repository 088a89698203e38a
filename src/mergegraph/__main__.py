"""``python -m mergegraph`` is ``mergegraph``."""

from mergegraph.cli.app import main

main()
