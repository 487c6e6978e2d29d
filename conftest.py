"""Two lines before pytest's last one: how long the tests took, and how long the labs."""


def pytest_terminal_summary(terminalreporter):
    seconds = {"tests": 0.0, "labs": 0.0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds["labs" if "labs/" in getattr(report, "nodeid", "") else "tests"] += getattr(report, "duration", 0)
    terminalreporter.write_line("tests {tests:.1f} s, labs {labs:.1f} s".format(**seconds))
