"""A seeded fuzzer of all modules: `python -m tests.fuzz --seconds 60`.

`cases` draws calls that nobody chose, in plain Python; `runner` hands them to a child process, which may crash; there
`call` makes the tensors, in memory that `memory` guards, runs a backend and judges what it gives. `faults` are mistakes
that it has to find. Every failure is one line, which begins with the command that runs that call again.
"""
