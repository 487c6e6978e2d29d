"""Lines before pytest's last one: how long the tests took, and how long the labs; and whether a browser was missing."""


def pytest_terminal_summary(terminalreporter):
    seconds = {"tests": 0.0, "labs": 0.0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds["labs" if "labs/" in getattr(report, "nodeid", "") else "tests"] += getattr(report, "duration", 0)
    reasons = {str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])}
    if any("no Chromium" in reason or "no playwright" in reason for reason in reasons):
        terminalreporter.write_line("no Chromium or no playwright here: what is seen in a browser was not tested")
    terminalreporter.write_line("tests {tests:.1f} s, labs {labs:.1f} s".format(**seconds))
