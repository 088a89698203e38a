"""Machine code from the text of kernels, without numba: for what tile code needs, ten times sooner.

The kernels are Python that numba compiles. This package knows the part of the language that they are written
in, and numba's rules for it, and makes the same of them: `sources` finds functions in the text of modules,
`kinds` says what values there are, `arithmetic` what operators do, `memory` what arrays do, `lanes` what sums
do; `calls`, `expressions` and `statements` walk through a function, in `scopes`; `machine` has LLVM make an
object file of the whole. What they do not know they refuse, with `Unsupported`, and numba compiles it.
"""
