"""The benchmark harness: whole merges as processes, against the floor and, where it is installed, a peer.

``python -m benchmarks --help`` says how to run it, ``docs/performance.md`` what it found.
"""
