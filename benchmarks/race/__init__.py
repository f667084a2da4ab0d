"""The sides of `benchmarks.race_cpu`: one program each, driven over a pipe."""
