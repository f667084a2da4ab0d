"""A stage with an objective from outside of the package."""

from lib import runs as h

from jaxalign.core.objective import objective
from jaxalign.core.types import Loss, Metrics, Pairs, per_example

MESH = h.one_device()


@objective(Pairs, source="here")
def branches(policy: Pairs, *, gamma: float = 0.5) -> tuple[Loss, Metrics]:
    """The log-probability of a response that Python chooses."""
    return per_example(-policy.chosen.logp if gamma > 0 else -policy.rejected.logp), {}


def test_an_objective_from_outside_may_read_its_numbers_in_python(inputs, tmp_path):
    def loss(gamma):
        section = {"name": branches, "gamma": gamma}
        changes = {"stages__dpo__objective": section, "stages__dpo__steps": 1}
        recipe = h.recipe(inputs, tmp_path / f"{gamma}", "dpo", **changes)
        h.run(recipe, MESH)
        return h.metrics(tmp_path / f"{gamma}" / "dpo")[0]["loss"]

    assert loss(1.0) != loss(-1.0)
