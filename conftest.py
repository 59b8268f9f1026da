"""What tests and benchmarks share: the option that takes everything."""

import pytest

pytest_plugins = ["pytester"]  # for the tests of tests/summary.py


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="tests: those marked full too; benchmarks: every shape, batch, dtype and backend (an hour or more)",
    )
