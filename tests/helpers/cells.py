"""Cells of the tables that the test run prints: each test with the mark `cell` records one result. Such a test fails if it is
skipped, or if it passes without recording a result, so that no cell stays empty."""

import pytest

TABLES = ("law", "stress", "stress of models")  # names of recorded properties


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    recorded = any(name in TABLES for name, _ in item.user_properties)
    empty = report.skipped or (report.when == "call" and report.passed and not recorded)
    if empty and item.get_closest_marker("cell") is not None:
        report.outcome, report.longrepr = "failed", f"{item.nodeid} leaves its cell of the table empty: record a result"
    return report
