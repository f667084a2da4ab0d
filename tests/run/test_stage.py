"""Data and settings that do not fit a model."""

import numpy as np
import pytest
from lib.checkpoints import SMALL, small_model

from jaxalign.data.examples import Example
from jaxalign.data.store import Examples
from jaxalign.errors import UserError
from jaxalign.run.check_data import check_ids
from jaxalign.run.stage import check_balance

VOCAB, POSITIONS = SMALL["vocab_size"], SMALL["max_position_embeddings"]


def checked(folder, prompt, response):
    example = Example.of(np.array(prompt, np.int32), np.array(response, np.int32))
    check_ids(Examples.of([example]), small_model(folder).spec, folder)


def test_the_last_token_and_the_last_position_are_accepted(hf_checkpoint):
    checked(hf_checkpoint("llama-gqa"), [1], [VOCAB - 1] * (POSITIONS - 1))


def test_a_token_that_the_model_lacks_is_refused(hf_checkpoint):
    with pytest.raises(UserError, match=f"has token {VOCAB}, but .* vocabulary has {VOCAB}; does"):
        checked(hf_checkpoint("llama-gqa"), [1], [VOCAB])


def test_a_sequence_over_the_positions_of_the_model_is_refused(hf_checkpoint):
    message = f"has {POSITIONS + 1} tokens, but .* was made for {POSITIONS} positions; set data.max"
    with pytest.raises(UserError, match=message):
        checked(hf_checkpoint("llama-gqa"), [1], [2] * POSITIONS)


def test_a_balance_of_experts_that_a_correction_balances_is_refused(hf_checkpoint):
    check_balance(0.1, small_model(hf_checkpoint("mixtral")).spec)
    corrected = small_model(hf_checkpoint("deepseek_v3")).spec
    check_balance(0.0, corrected)
    with pytest.raises(UserError, match=r"router_balance: got 0\.1, but .* 'deepseek_v3' balances"):
        check_balance(0.1, corrected)
