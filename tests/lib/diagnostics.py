"""Every diagnostic in float64 NumPy, one example after the other, from its formula.

`policy` and `ref` are {row: list over examples of per-token log-probabilities, float64 [T_i]};
values are averages over examples. Nothing here imports the package.
"""

import math
from collections import Counter

import numpy as np


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mean(values):
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values)


def ranking(policy):
    pairs = list(zip(policy["chosen"], policy["rejected"], strict=True))
    return {
        "ranking/accuracy": mean([float(w.sum() > y.sum()) for w, y in pairs]),
        "ranking/accuracy_per_token": mean([float(w.mean() > y.mean()) for w, y in pairs]),
    }


def difficulty(ref, beta, alpha=0.75):
    rows = []
    for w, y in zip(ref["chosen"], ref["rejected"], strict=True):
        needed = sigmoid(beta * (y.sum() - w.sum()))
        # An optimal policy has the odds (ref_w / ref_l) (alpha / (1 - alpha))^(1 / beta).
        log_odds = w.sum() - y.sum() + math.log(alpha / (1 - alpha)) / beta
        rows.append((-math.log(needed), needed, float(w.sum() > y.sum()), float(log_odds > 0)))
    names = ("threshold", "win_rate", "reference", "idealized")
    columns = zip(*rows, strict=True)
    return {f"difficulty/{n}": mean(list(c)) for n, c in zip(names, columns, strict=True)}


def three_d(policy, ref):
    rows = []
    for i in range(len(ref["chosen"])):
        w, y = policy["chosen"][i].sum(), policy["rejected"][i].sum()
        w0, y0 = ref["chosen"][i].sum(), ref["rejected"][i].sum()
        mass = np.logaddexp(w, y) - np.logaddexp(w0, y0)
        rows.append((float(w < w0), float(y < y0), w - y, mass))
    names = ("drop_chosen", "drop_rejected", "degradation", "dispersion")
    columns = zip(*rows, strict=True)
    return {f"three_d/{n}": mean(list(c)) for n, c in zip(names, columns, strict=True)}


def gini(values):
    """By the average difference of two values, not by ranks."""
    x = np.asarray(values, np.float64)
    if not x.sum():
        return math.nan
    return np.abs(x[:, None] - x[None]).sum() / (2 * len(x) ** 2 * x.mean())


def shift(policy, ref):
    out = {}
    for row in policy:
        moved = [p - r for p, r in zip(policy[row], ref[row], strict=True)]
        out[f"shift/{row}"] = mean([m.sum() for m in moved])
        out[f"shift/{row}_token"] = mean([m.mean() for m in moved])
        out[f"shift/{row}_gini"] = mean([gini(np.abs(m)) for m in moved])
    return out


def logit_shift(logits, ref_logits):
    """{row: list over examples of logits [T_i, V]}"""
    out = {}
    for row in logits:
        rows = []
        for z, before in zip(logits[row], ref_logits[row], strict=True):
            far = [float(abs(a - b).sum()) for a, b in zip(z, before, strict=True)]
            uneven = [gini(abs(a - b)) for a, b in zip(z, before, strict=True)]
            sharp = [gini(abs(a)) for a in z]
            n = len(z)
            rows.append((sum(far), sum(far) / n, sum(uneven) / n, sum(sharp) / n))
        names = (row, f"{row}_token", f"{row}_gini", f"{row}_logits_gini")
        for name, values in zip(names, zip(*rows, strict=True), strict=True):
            out[f"logit_shift/{name}"] = mean(list(values))
    return out


def dynamic_target(logits, targets, ref):
    out = {}
    for row, sign in (("chosen", 1), ("rejected", -1)):
        values = []
        for z, y, before in zip(logits[row], targets[row], ref[row], strict=True):
            logp = z - np.logaddexp.reduce(z, -1, keepdims=True)
            total = 0.0
            for t, token in enumerate(y):
                p = np.exp(logp[t])
                goal = p * (1 - min(1.0, p[token] / math.exp(before[t]))) / (1 - p[token])
                goal[token] = min(1.0, p[token] / math.exp(before[t]))
                total -= sign * goal @ logp[t]
            values.append(total / len(y))
        out[f"dynamic_target/{row}"] = mean(values)
    out["dynamic_target/loss"] = sum(out.values())
    return out


def topk(logits, k=10):
    """{row: list over examples of logits [T_i, V]}"""
    out = {}
    for row, examples in logits.items():
        values = []
        for z in examples:
            p = np.exp(z - np.logaddexp.reduce(z, -1, keepdims=True))
            top = -np.sort(-p, -1)[:, :k]
            among = top / top.sum(-1, keepdims=True)
            values.append(
                [
                    top.sum(-1).mean(),
                    -(top * np.log(top)).sum(-1).mean(),
                    -(among * np.log(among)).sum(-1).mean(),
                ]
            )
        for name, column in zip(
            ("mass", "entropy", "renormalized"), zip(*values, strict=True), strict=True
        ):
            out[f"topk/{row}_{name}"] = mean(list(column))
    return out


def expected_calibration_error(confidence, right, bins=10):
    total = 0.0
    for b in range(bins):
        last = b == bins - 1
        inside = [
            i for i, c in enumerate(confidence) if b / bins <= c and (c < (b + 1) / bins or last)
        ]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            average = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - average)
    return total


def calibration(policy, margins):
    m_w, m_l = ([y.mean() for y in policy[row]] for row in ("chosen", "rejected"))
    return {
        "calibration/reward": expected_calibration_error(
            [sigmoid(abs(m)) for m in margins], [m > 0 for m in margins]
        ),
        "calibration/likelihood": expected_calibration_error(
            [math.exp(m) for m in m_w], [w > y for w, y in zip(m_w, m_l, strict=True)]
        ),
    }


def entanglement(chosen, rejected):
    """Two flat gradients."""
    chosen, rejected = (np.asarray(g, np.float64) for g in (chosen, rejected))
    inner, w, y = chosen @ rejected, chosen @ chosen, rejected @ rejected
    return {
        "entanglement/inner": inner,
        "entanglement/cosine": inner / math.sqrt(w * y),
        "entanglement/chosen_norm2": w,
        "entanglement/rejected_norm2": y,
        "entanglement/rho": inner / min(w, y),
    }


def diversity(answers, vocab):
    out, kept = {}, []
    for n in range(1, 6):
        grams = Counter()
        for a in answers:
            for i in range(len(a)):
                if len(piece := a[i : i + n]) == n:
                    grams[",".join(map(str, piece))] += 1
        total = sum(grams.values())
        if total:
            expected = vocab * (1 - ((vocab - 1) / vocab) ** total)
            kept.append((len(grams) / total, len(grams) / expected))
            out[f"distinct/{n}"], out[f"ead/{n}"] = kept[-1]
    if kept:
        out["distinct"], out["ead"] = (float(np.mean(x)) for x in zip(*kept, strict=True))
    return out
