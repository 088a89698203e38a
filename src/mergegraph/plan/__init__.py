"""Plans: YAML text in, typed values out, with the line that each came from.

`kinds` reads a plan of any kind: `merge`, `moe` or `surgery` (`surgery_reader`). `source` reads YAML,
`fields` mappings, `values` the small languages inside (model references, settings), `models` what may stand
for a model; `schema` lists all keys. Pure: nothing here looks at the file system, so a plan means the same
everywhere.
"""

LOCK_SUFFIX = ".lock.json"
"""What the file name of a locked plan ends in."""
