"""Plans: YAML text in, typed values out, with the line that each came from.

`source` reads YAML, `values` the small languages inside it (model references, settings), `merge` whole
merge plans. Pure: nothing here looks at the file system, so a plan means the same everywhere.
"""

LOCK_SUFFIX = ".lock.json"
"""What the file name of a locked plan ends in."""
