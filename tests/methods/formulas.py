"""The formulas of the methods in float64, from the papers: what `test_formulas` compares with.

Those that work with directions or thresholds are shared with the parity suite, which takes nothing from `src`
either. All take (base or None, models, shared parameters, those of each model); defaults may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity import oracle, spheres
from tests.parity.masks import ranked

Vector = npt.NDArray[np.float64]
Parameters = dict[str, Any]
Formula = Callable[[Vector | None, list[Vector], Parameters, list[Parameters]], Vector]


def linear(_: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    w = np.array([p["weight"] for p in each])
    if shared.get("normalize", True):
        w = w / w.sum()
    return np.tensordot(w, np.stack(models), axes=1)


def passthrough(_: Vector | None, models: list[Vector], __: Parameters, each: list[Parameters]) -> Vector:
    factor = each[0].get("scale")
    return models[0] if factor is None else factor * models[0]


def slerp(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    a, b, t = base, models[0], shared["t"]
    norms = [n if n > 1e-8 else 1.0 for n in (np.linalg.norm(a), np.linalg.norm(b))]
    cosine = np.clip(np.dot((a / norms[0]).ravel(), (b / norms[1]).ravel()), -1, 1)
    if abs(cosine) > 0.9995:
        return np.asarray((1 - t) * a + t * b)
    theta = np.arccos(cosine)
    return np.asarray((np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta))


def task_arithmetic(
    base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
) -> Vector:
    assert base is not None
    w = np.array([p["weight"] for p in each])
    total = np.tensordot(w, np.stack([x - base for x in models]), axes=1)
    if shared.get("normalize", False) and abs(w.sum()) >= 1e-8:
        total = total / w.sum()
    return np.asarray(base + shared.get("lambda", 1.0) * total)


def ties(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    assert base is not None
    changes = []
    for x, p in zip(models, each, strict=True):
        d, density = x - base, p.get("density", 1.0)
        kept = d
        if density <= 0:
            kept = np.zeros_like(d)
        elif density < 1:
            count = max(1, int(density * d.size))
            kept = np.where(abs(d) >= np.sort(abs(d).ravel())[-count], d, 0.0)
        norms = abs(d).sum(), abs(kept).sum()
        if shared.get("rescale", False) and density < 1 and min(norms) >= 1e-7:
            kept = kept * (norms[0] / norms[1])
        changes.append(p["weight"] * kept)
    stacked = np.stack(changes)
    majority = np.where(stacked.sum(axis=0) >= 0, 1.0, -1.0)
    agree = np.sign(stacked) == majority
    total = np.where(agree, stacked, 0.0).sum(axis=0)
    if shared.get("normalize", True):
        weights = np.array([p["weight"] for p in each]).reshape(-1, *[1] * base.ndim)
        divisor = np.where(agree, weights, 0.0).sum(axis=0)
        total = total / np.where(divisor == 0, 1.0, divisor)
    return np.asarray(base + shared.get("lambda", 1.0) * total)


# ---- random numbers --------------------------------------------------------------------------------


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def uniform(stream: tuple[float, float], count: int) -> Vector:
    """The first numbers of a stream: SplitMix64 started at the hashed stream, in exact integers."""
    golden = 0x9E3779B97F4A7C15
    start = _mixed((int(stream[0]) * 2**24 + int(stream[1]) + golden) % 2**64)
    return np.array([(_mixed((start + i * golden) % 2**64) >> 40) / 2**24 for i in range(1, count + 1)])


# ---- task vectors, sparsified ------------------------------------------------------------------------


def _dare(delta: Vector, p: Parameters) -> Vector:
    chance = p.get("density", 1.0)
    return delta * (uniform(p["stream"], delta.size).reshape(delta.shape) < chance)


def _della(delta: Vector, p: Parameters) -> Vector:
    chance = ranked(delta, p.get("density", 1.0), p.get("epsilon", 0.15))
    return delta * (uniform(p["stream"], delta.size).reshape(delta.shape) < chance)


def _breadcrumbs(delta: Vector, p: Parameters) -> Vector:
    return oracle.crumbs(delta, p.get("density", 1.0), p.get("gamma", 0.01), double=True)[0]


def _sparse(
    sparsify: Callable[[Vector, Parameters], Vector], *, consensus: bool, normalize: bool, rescale: bool
) -> Formula:
    """A method on sparsified task vectors, with its own defaults."""

    def formula(
        base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
    ) -> Vector:
        assert base is not None
        kept = []
        for x, p in zip(models, each, strict=True):
            sparse = sparsify(x - base, p) if p.get("density", 1.0) < 1 else x - base
            kept.append(oracle.lengthened(x - base, sparse) if shared.get("rescale", rescale) else sparse)
        how = oracle.Sum(consensus, shared.get("normalize", normalize), shared.get("lambda", 1.0))
        pairs = [(k, oracle.nowhere(k)) for k in kept]
        return oracle.added(base, pairs, [p["weight"] for p in each], how).values

    return formula


# ---- directions, and everything else ---------------------------------------------------------------


def nuslerp(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    flatten, row_wise = shared.get("nuslerp_flatten", True), shared.get("nuslerp_row_wise", False)
    weights = [p["weight"] for p in each]
    return spheres.nuslerp(base, models, weights, flatten=flatten, row_wise=row_wise).values


def multislerp(
    base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
) -> Vector:
    weights, normalize = [p["weight"] for p in each], shared.get("normalize_weights", True)
    return spheres.multislerp(base, models, weights, normalize=normalize, eps=shared.get("eps", 1e-8)).values


def karcher(_: Vector | None, models: list[Vector], shared: Parameters, __: list[Parameters]) -> Vector:
    return spheres.karcher(models, max_iter=shared.get("max_iter", 10), tol=shared.get("tol", 1e-5)).values


def model_stock(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    return spheres.model_stock(base, models, filter_wise=shared.get("filter_wise", False)).values


def nearswap(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    return oracle.nearswap(base, models[0], t=shared["t"]).values


def arcee_fusion(base: Vector | None, models: list[Vector], _: Parameters, __: list[Parameters]) -> Vector:
    assert base is not None
    return oracle.arcee_fusion(base, models[0]).values


def sce(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    return oracle.sce(base, models, select_topk=shared.get("select_topk", 1.0)).values


def ram(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    return oracle.ram(base, models, epsilon=shared.get("epsilon", 1e-5)).values


def ramplus_tl(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    own = {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2} | shared
    return oracle.ram(base, models, epsilon=own["epsilon"], r=own["r"], alpha=own["alpha"]).values


# ---- positions, masks and competition ---------------------------------------------------------------


def lines(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    factor = shared.get("alpha", 0.5) + shared.get("beta", 0.5) * shared["position"]
    return task_arithmetic(base, models, {**shared, "lambda": factor}, each)


def consensus(
    base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
) -> Vector:
    assert base is not None
    changes = [x - base for x in models]
    total = sum((p.get("weight", 1.0) * d for p, d in zip(each, changes, strict=True)), np.zeros_like(base))
    votes = sum(
        (abs(d) >= p.get("threshold", 0.4) * abs(total - d)).astype(int)
        for p, d in zip(each, changes, strict=True)
    )
    kept = np.where(votes >= min(shared.get("k", 2), len(models)), total, 0.0)
    return np.asarray(base + shared.get("lambda", 1.0) * kept)


def emr(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    assert base is not None
    changes = np.stack([x - base for x in models])
    direction = np.where(changes.sum(axis=0) >= 0, 1.0, -1.0)
    mask = changes * direction > 0
    unified = direction * np.where(mask, abs(changes), 0.0).max(axis=0)
    own = [abs(d).sum() / abs(m * unified).sum() * m * unified for d, m in zip(changes, mask, strict=True)]
    return np.asarray(
        base
        + shared.get("lambda", 1.0) * np.average(own, axis=0, weights=[p.get("weight", 1.0) for p in each])
    )


def _scaled(x: Vector, low: float, high: float) -> Vector:
    """From 0 to 1; a range of one number has 1 there."""
    return np.asarray((np.clip(x, low, high) - low) / (high - low) if high > low else (x >= high) * 1.0)


def pcb(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    assert base is not None
    changes = [x - base for x in models]
    weights = []
    for d, p in zip(changes, each, strict=True):
        strength = _scaled(abs(d), abs(d).min(), abs(d).max())  # so small a tensor has no outliers
        score = np.exp(len(models) * strength**2) * np.tanh(np.maximum(d * sum(changes), 0.0))
        ranked_scores = np.sort(score.ravel())
        first = min(score.size - 1, int(score.size * (1 - p.get("ratio", 0.1))))
        weights.append(_scaled(score, ranked_scores[first], ranked_scores[-1]))
    total = sum(weights)
    mean = sum(w * d for w, d in zip(weights, changes, strict=True)) / np.where(total == 0, 1.0, total)
    return np.asarray(base + shared.get("lambda", 1.0) * mean)


# ---- singular vectors ------------------------------------------------------------------------------


def _svd(x: Vector) -> tuple[Vector, Vector, Vector]:
    u, s, v = np.linalg.svd(x, full_matrices=False)
    return u, s, v


def _orthogonal(x: Vector) -> Vector:
    p, _, q = _svd(x)
    return np.asarray(p @ q)


def _of_matrices(matrices: Callable[[list[Vector], Parameters], Vector]) -> Formula:
    def formula(
        base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
    ) -> Vector:
        assert base is not None
        changes = [p.get("weight", 1.0) * (x - base) for x, p in zip(models, each, strict=True)]
        found = matrices(changes, shared) if shared.get("decompose", True) else np.mean(changes, axis=0)
        return np.asarray(base + shared.get("lambda", 1.0) * found)

    return formula


def _tsv(changes: list[Vector], shared: Parameters) -> Vector:
    kept = int(shared.get("rank", 1 / len(changes)) * min(changes[0].shape))
    parts = [_svd(d) for d in changes]
    u = np.concatenate([p[0][:, :kept] for p in parts], axis=1)
    s = np.concatenate([p[1][:kept] for p in parts])
    v = np.concatenate([p[2][:kept] for p in parts], axis=0)
    return np.asarray(_orthogonal(u) @ np.diag(s) @ _orthogonal(v))


def _iso(changes: list[Vector], shared: Parameters) -> Vector:
    rank, count = min(changes[0].shape), len(changes)
    u, s, v = _svd(np.sum(changes, axis=0))
    own = (rank - int(shared.get("common", 1.0) * rank)) // count
    common = rank - own * count
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:common]]
    for d in changes:
        rest = _svd(d - us[0] @ us[0].T @ d)
        us.append(rest[0][:, :own])
        ss.append(rest[1][:own])
        vs.append(rest[2][:own])
    whole_u, whole_v = np.concatenate(us, axis=1), np.concatenate(vs, axis=0)
    return np.asarray(np.concatenate(ss).mean() * _orthogonal(whole_u) @ _orthogonal(whole_v))


FORMULAS: dict[str, Formula] = {
    "arcee_fusion": arcee_fusion,
    "breadcrumbs": _sparse(_breadcrumbs, consensus=False, normalize=False, rescale=False),
    "breadcrumbs_ties": _sparse(_breadcrumbs, consensus=True, normalize=False, rescale=False),
    "consensus": consensus,
    "dare_linear": _sparse(_dare, consensus=False, normalize=False, rescale=True),
    "dare_ties": _sparse(_dare, consensus=True, normalize=False, rescale=True),
    "della": _sparse(_della, consensus=True, normalize=True, rescale=True),
    "della_linear": _sparse(_della, consensus=False, normalize=False, rescale=True),
    "emr": emr,
    "iso": _of_matrices(_iso),
    "karcher": karcher,
    "linear": linear,
    "lines": lines,
    "model_stock": model_stock,
    "multislerp": multislerp,
    "nearswap": nearswap,
    "nuslerp": nuslerp,
    "passthrough": passthrough,
    "pcb": pcb,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "sce": sce,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "tsv": _of_matrices(_tsv),
}
