import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import aot, shapes
from benchmarks.gpu_check.speed import useful_flops
from benchmarks.race import work
from benchmarks.race_cpu import MODELS, SIDES, differences, entered, per_step
from benchmarks.tables import table
from jaxalign.data.examples import Example
from jaxalign.models.families import read_config
from jaxalign.models.spec import Dense, Layer, NormKind, Softmax

ROOT = Path(__file__).parents[2]
LAYER = Layer(Softmax(2, 1, 3, scale=1.0, rope=None), Dense(5, "silu"), NormKind(1e-6))


def pair(prompt: int, chosen: int, rejected: int) -> work.Pair:
    return work.Pair(*(np.arange(n, dtype=np.int32) for n in (prompt, chosen, rejected)))


def test_useful_flops_are_those_counted_by_hand():
    shape = SimpleNamespace(vocab=11, width=4, layers=(LAYER, LAYER))
    # q 4x6, k and v 4x3 each, o 6x4; gate, up, down 4x5 each: 132 parameters a layer.
    # 2 + 3 + 1 tokens; the prompt sees 1 + 2 keys, the chosen 3 + 4 + 5, the rejected 3.
    body = 2 * (2 * 132 * 6 + 4 * 6 * (3 + 12 + 3))
    head = 2 * 4 * 11 * (3 + 1)
    assert work.useful_flops(shape, [pair(2, 3, 1)]) == 3 * (body + head)
    assert work.useful_flops(shape, [pair(2, 3, 1)] * 2) == 6 * (body + head)


def test_the_first_token_without_a_prompt_is_not_scored():
    shape = SimpleNamespace(vocab=7, width=1, layers=())
    assert work.useful_flops(shape, [pair(0, 3, 2)]) == 3 * 2 * 7 * (2 + 1)


def test_pairs_come_back_from_disk(tmp_path):
    given = [pair(3, 2, 1), pair(1, 1, 4)]
    work.save(tmp_path, given, work.CPU)
    found = work.load(tmp_path)
    assert [[p.tolist() for p in x] for x in found] == [[p.tolist() for p in x] for x in given]
    assert [x.tokens for x in found] == [9, 7]
    assert work.terms(tmp_path) == work.CPU


def steps(*losses: float, norm: float = 2.0) -> list[dict[str, float]]:
    return [{"loss": loss, "norm": norm} for loss in losses]


def test_sides_are_compared_and_a_nan_is_the_largest_difference():
    fine = steps(math.log(2), 0.5)
    loss, norm = differences({"torch": fine, "jaxalign": steps(math.log(2), 0.51, norm=2.02)})
    assert (loss, norm) == pytest.approx((0.01, 0.01))
    # SLPO is another loss, Tunix another model: after the first step nothing is known of them.
    others = {"torch": fine, "jaxalign-slpo": steps(0.01, 0.02), "tunix": steps(math.log(2), 9.0)}
    assert differences(others) == (0.0, 0.0)
    assert differences({"tunix": steps(0.8, 0.5)})[0] == pytest.approx(0.8 - math.log(2))
    assert math.isnan(differences({**others, "jaxalign-slpo": steps(0.01, math.nan)})[1])


def test_a_figure_is_the_mean_over_batches_of_the_median_over_passes():
    cpu = [{"cpu": x} for x in (1.0, 10.0, 2.0, 20.0, 9.0, 30.0)]
    assert per_step(cpu, "cpu", 2) == (2.0 + 20.0) / 2


def test_every_side_races_somewhere():
    assert {side for model in MODELS for side in entered(model, list(SIDES))} == set(SIDES)
    assert entered("qwen-8k", list(SIDES)) == ["tunix", "jaxalign"]


def test_a_table_is_aligned():
    assert table([["a", "bc"], ["def", "g"]]) == "|   a | bc |\n|----:|---:|\n| def |  g |"


def test_the_readme_has_a_row_for_every_program():
    rows = re.findall(
        r"^\|[^|]+\| `(\w+)` \|", (ROOT / "benchmarks" / "README.md").read_text(), re.M
    )
    files = (ROOT / "benchmarks").glob("*.py")
    programs = {path.stem for path in files if "\nif __name__ ==" in path.read_text()}
    assert sorted(rows) == sorted(programs | {"gpu_check"})


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_dpo_updates_equal_those_of_a_plain_torch_step():
    done = run("benchmarks.dpo_torch", "--updates", "4")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_race_runs_and_its_sides_agree():
    sizes = ("--models", "tiny", "--batches", "2", "--passes", "1")
    done = run("benchmarks.race_cpu", *sizes, "--sides", "torch", "torch-compact", "jaxalign")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|  tiny |")]
    assert [row.split("|")[4].strip() for row in rows][-1] == "1.00"
    assert len(rows) == 3


TINY = read_config(shapes.config("tiny"))


def test_adapters_spare_the_gradient_of_every_other_matrix():
    # q and o 64x64, k and v 64x32; gate, up, down 64x128: 36,864 parameters in each of 2 layers.
    item = Example.of(*(np.zeros(n, np.int32) for n in (2, 3, 1)))
    linear, attention, head = 2 * 2 * 36_864 * 6, 2 * 4 * 64 * (3 + 12 + 3), 2 * 64 * 512 * 4
    assert useful_flops(TINY, [item], 0) == 3 * (linear + attention + head)
    assert useful_flops(TINY, [item], 10) == 2 * (linear + head) + 3 * (attention + 2 * 10 * 6)


def test_pairs_are_as_long_as_they_say():
    assert {item.length for item in shapes.filling(3, 512, 256)} == {256}
    drawn = shapes.hh_like(2000, 512)
    sizes = np.array([[len(x.prompt), *(len(b.ids) for b in x.branches)] for x in drawn])
    assert sizes.mean(0) == pytest.approx([119, 40, 50], rel=0.05)
    assert 400 < sizes[:, 0].max() <= 519


def test_a_float32_head_on_one_device_is_found():
    config = read_config(shapes.config("Llama-3-8B"))
    for held in ("f32[4096,128256]{1,0}", "f32[128256,4096]", "f32[1,4096,128256]"):
        assert aot.whole_head(f"%add = {held} add(%a, %b)", config)
    for cut in ("bf16[4096,128256]", "f32[512,128256]", "f32[2048,128256]", "f32[14096,128256]"):
        assert not aot.whole_head(f"%add = {cut} add(%a, %b)", config)


def test_memory_of_a_gpu_is_a_sum_and_that_of_a_tpu_is_told():
    memory = SimpleNamespace(
        argument_size_in_bytes=10,
        output_size_in_bytes=8,
        alias_size_in_bytes=7,
        temp_size_in_bytes=100,
        peak_memory_in_bytes=90,
    )
    assert aot.peak(memory, "H100") == 111
    assert aot.peak(memory, "v5e") == 90
