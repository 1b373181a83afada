"""Pytest plugin: where the variable CI is set (and not 0 or false), a test that did not run fails the session.

A missing back end turns into a skip on a user's machine. On the machine that decides whether a change is good,
the same skip would mean that nobody tested the back end.
"""

import os

import pytest

# Test id or the beginning of one -> why it may be skipped even there.
ALLOWED: dict[str, str] = {}


def _reason(longrepr: object) -> str:
    """What pytest keeps of a skip is (file, line, reason); of an expected failure it is the traceback."""
    return str(longrepr[2]) if isinstance(longrepr, tuple) else "expected to fail (xfail)"


class NoSkips:
    """Collects skips of tests and of whole modules. Under xdist only the controller sees every worker's."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not report.nodeid.startswith(tuple(ALLOWED)):
            self.skipped[report.nodeid] = _reason(report.longrepr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        passed_otherwise = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.skipped and passed_otherwise:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped although CI is set", red=True)
            for nodeid, reason in sorted(self.skipped.items()):
                terminalreporter.write_line(f"{nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    if in_ci and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(NoSkips(), "grpo-ext-no-skips")
