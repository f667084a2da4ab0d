"""Values, speed and a race of jaxalign on one GPU, most valuable first, within a budget of seconds.

    python -m benchmarks.gpu_check --budget 480 --out FOLDER [--only PART ...] [--data PAIRS]
    python -m benchmarks.gpu_check --quick --out FOLDER

`plan.py` lists the parts. Each is a process of its own with a time limit of its own, and appends
every result to FOLDER/PART.jsonl as soon as it has it; FOLDER/PART.log is what it printed. The
tables in FOLDER/summary.md are written again after every part. `--quick` runs every part with tiny
models on any device. The exit code is 1 where a value is wrong, the race is void or a part failed.
"""
