"""The table of reliability adds up what the tests say, and hides no loss."""

from scripts import script

reliability = script("reliability")
rows, table = reliability.rows, reliability.table

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.test_killed" name="a[1]" time="1.5"><properties>
<property name="trials" value="25"/><property name="kills" value="60"/></properties></testcase>
<testcase classname="tests.test_killed" name="a[2]" time="2.5"><properties>
<property name="trials" value="25"/><property name="kills" value="61"/></properties>
<failure message="no">no</failure></testcase>
<testcase classname="tests.test_races" name="b" time="3"><properties>
<property name="trials" value="1000"/></properties></testcase>
<testcase classname="tests.test_races" name="c" time="0"><skipped message="no"/></testcase>
<testcase classname="tests.test_masks" name="d" time="9"/>
</testsuite></testsuites>"""


def test_trials_kills_and_losses_are_summed_by_file() -> None:
    killed, races = rows(REPORT)
    assert (killed.tests, killed.trials, killed.kills, killed.lost) == (2, 50, 121, 1)
    assert (races.tests, races.trials, races.kills, races.lost) == (2, 1001, 0, 0)
    assert races.skipped == 1
    assert killed.promise.startswith("A run that is killed")


def test_the_table_is_one_row_a_promise() -> None:
    head, rule, killed, races = table(rows(REPORT)).splitlines()
    assert head.count("|") == rule.count("|") == killed.count("|")
    assert killed.endswith("| `test_killed.py` | 2 | 50 | 121 | 1 | 4 |")
    assert races.endswith("| `test_races.py` | 2 (1 skipped) | 1,001 | 0 | 0 | 3 |")
