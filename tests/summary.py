"""The end of a test run: each failure in one line, whole, with its case, its error and what was allowed."""

LONGEST = 600  # of a message


def pytest_terminal_summary(terminalreporter):
    """pytest's own lines end where the terminal does, often before the error. They are left to -r fE."""
    reports = [*terminalreporter.getreports("error"), *terminalreporter.getreports("failed")]
    if reports:
        terminalreporter.section("failures, one by one")
    for report in reports:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = " ".join((crash.message if crash else str(report.longrepr)).split())
        message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
        terminalreporter.line(f"{report.nodeid}: {message}")
