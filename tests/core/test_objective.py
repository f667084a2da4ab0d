"""The decorator and `bind`."""

from typing import Literal

import pytest

from jaxalign.core import stats
from jaxalign.core.objective import objective
from jaxalign.core.types import Demos


def declare(fn, **declared):
    return objective(Demos, source="a test", **declared)(fn)


def plain(policy, *, beta: float = 1.0):
    """Documented."""
    return policy, beta


def test_the_name_is_the_function_s():
    assert declare(plain).name == "plain"


def test_hyper_parameters_are_the_keyword_only_arguments():
    assert list(declare(plain).hyper) == ["beta"]


def test_an_objective_is_still_the_function():
    assert declare(plain)(1, beta=2.0) == (1, 2.0)


def test_bind_passes_only_declared_inputs():
    assert declare(plain).bind(beta=3.0)(policy=1, ref=2, state=None) == (1, 3.0)


def test_a_reference_is_used_where_it_is_asked_for():
    def with_ref(policy, ref):
        """Documented."""

    assert (declare(with_ref).uses_ref, declare(plain).uses_ref) == (True, False)


def test_a_docstring_is_required():
    def bare(policy):
        pass

    with pytest.raises(TypeError, match="bare: an objective needs a docstring"):
        declare(bare)


def test_an_unknown_input_is_refused():
    def odd(policy, reference):
        """Documented."""

    with pytest.raises(TypeError, match=r"got \['reference'\]; make the rest keyword-only"):
        declare(odd)


def test_a_policy_is_required():
    def blind(ref):
        """Documented."""

    with pytest.raises(TypeError, match="needs a `policy` input"):
        declare(blind)


def test_a_state_input_needs_an_initial_state():
    def stateful(policy, state):
        """Documented."""

    with pytest.raises(TypeError, match="`state` input and `init_state` come together"):
        declare(stateful)


def test_an_initial_state_needs_a_state_input():
    with pytest.raises(TypeError, match="`state` input and `init_state` come together"):
        declare(plain, init_state=dict, couples_examples=True)


def test_a_state_couples_examples():
    def stateful(policy, state):
        """Documented."""

    with pytest.raises(TypeError, match="set couples_examples"):
        declare(stateful, init_state=dict)


def test_columns_need_a_batch_input():
    with pytest.raises(TypeError, match="`batch` input and `columns` come together"):
        declare(plain, columns=("label",))


def test_a_batch_input_needs_columns():
    def labelled(policy, batch):
        """Documented."""

    with pytest.raises(TypeError, match="`batch` input and `columns` come together"):
        declare(labelled)


def test_needs_hold_logp():
    with pytest.raises(TypeError, match=r"must hold stats\.logp"):
        declare(plain, needs=(stats.log_complement,))


def test_statistics_of_layers_are_of_a_reference():
    def with_ref(policy, ref):
        """Documented."""

    layers = (stats.activation,)
    assert declare(with_ref, layers=layers).reference == "live"
    with pytest.raises(TypeError, match="statistics of the reference's layers need a `ref` input"):
        declare(plain, layers=layers)


def test_an_unknown_hyper_parameter_is_named_with_its_near_miss():
    with pytest.raises(TypeError, match=r"no hyper-parameter 'betta'; did you mean 'beta'\?"):
        declare(plain).bind(betta=1.0)


def test_a_hyper_parameter_without_default_is_required():
    def strict(policy, *, beta: float):
        """Documented."""

    with pytest.raises(TypeError, match=r"needs \['beta'\]: they have no default"):
        declare(strict).bind()


def test_a_word_must_be_one_of_the_choices():
    def choosy(policy, *, form: Literal["split", "joint"] | None = None):
        """Documented."""

    with pytest.raises(TypeError, match=r"form has no choice 'join'; did you mean 'joint'\?"):
        declare(choosy).bind(form="join")


def test_a_word_where_a_number_belongs_is_refused():
    with pytest.raises(TypeError, match="beta is a number; got 'big'"):
        declare(plain).bind(beta="big")


def test_a_key_is_an_input():
    def random(policy, key):
        """Documented."""
        return policy, key

    assert declare(random).bind()(policy=1, key=2) == (1, 2)


def test_a_missing_input_is_named():
    def with_ref(policy, ref):
        """Documented."""

    with pytest.raises(TypeError, match=r"'with_ref' reads \['ref'\]; got \['policy'\]"):
        declare(with_ref).bind()(policy=1)
