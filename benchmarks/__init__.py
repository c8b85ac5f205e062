"""Speed and memory against the usual path, in one command: `python -m benchmarks`.

Each script also runs by itself (`python -m benchmarks.training`), and each takes `--quick`. Both
sides of a ratio are measured in one run, turn by turn, in processor seconds: another program on
the machine then slows both alike.
"""
