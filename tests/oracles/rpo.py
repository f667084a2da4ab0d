from .dpo import dpo
from .pairs import add_nll

HYPER = {
    "rpo": [
        {},
        {"beta": 0.5, "alpha": 0.2},
        {"beta": 0.3, "alpha": 0.005, "sft_reduction": "sum"},
        {"sft_reduction": "token_mean"},
    ]
}
WORKED = [
    ("rpo", {}, 3.099658918622, -0.2472527695655, 0.04725276956554),
    ("rpo", {"sft_reduction": "token_mean"}, 3.099658918622, -0.2472527695655, 0.04725276956554),
    (
        "rpo",
        {"sft_reduction": "sum", "alpha": 0.005},
        0.7011589186224,
        -0.05225276956554,
        0.04725276956554,
    ),
]


def rpo(policy, ref, columns, previous=None, beta=0.1, alpha=1.0, sft_reduction="mean"):
    loss, grad = dpo(policy, ref, columns, beta=beta)
    return add_nll(policy, loss, grad, alpha, sft_reduction)
