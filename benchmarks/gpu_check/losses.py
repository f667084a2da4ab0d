"""Ten DPO updates against plain torch on the same device: losses and gradient norms, float32."""

from __future__ import annotations

from pathlib import Path

from .part import arguments, check, turn

UPDATES = 10


def main() -> None:
    """Compare every update."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    from .. import common, dpo_torch

    turn()
    common.start()
    theirs, ours = dpo_torch.both(args.data, 2 if args.quick else UPDATES)
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True), 1):
        off = abs(b.grad_norm / a.grad_norm - 1)
        check(args.out, f"update {number}: loss {a.loss:.4f}", abs(b.loss - a.loss), dpo_torch.LOSS)
        check(args.out, f"update {number}: norm {a.grad_norm:.4f}", off, dpo_torch.NORM)


if __name__ == "__main__":
    main()
