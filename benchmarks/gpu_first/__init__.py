"""What must be known of a GPU, in one run of eight minutes: `python -m benchmarks.gpu_first --out DIR`.

rows      what is run, phase by phase, in the order of its worth
pool      processes that run rows, so that a failure costs its row alone
worker    such a process; `look`, `right`, `special`, `fast` and `why` are what it does
standin   Triton's launch path without a GPU: a driver that computes nothing, for `benchmarks.precompile`
predict   the time that each kernel should take
summary   the table and the JSON at the end
"""
