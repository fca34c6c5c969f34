"""A reader takes a damaged file or refuses it in one line; nothing else ever happens.

`fuzzing.py` tells what else there is. Each input is told by its number: a failure names those to be
given to `python tests/fuzzing.py 1 --first NUMBER`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import Findings, findings_in, fuzz

FEW, MANY = 300, 10_000


def check(findings: Findings, count: int) -> None:
    assert findings.failures == {}
    assert findings.counts.total() == count
    # Damage that every reader refuses, or none does, would try nothing that lies behind its door.
    readers = {reader for reader, _ in findings.counts}
    taken = {reader for reader, outcome in findings.counts if outcome == "taken"}
    refused = {reader for reader, outcome in findings.counts if outcome == "refused"}
    assert len(readers) >= 18
    assert refused == readers
    if count == MANY:
        assert readers - taken <= {"bundle sums"}


def test_a_few_damaged_files_of_every_kind() -> None:
    check(fuzz(FEW), FEW)


@pytest.mark.slow
def test_ten_thousand_damaged_files(record_property: Callable[[str, object], None]) -> None:
    check(fuzz(MANY, first=FEW), MANY)
    record_property("trials", MANY)


# What a harness must notice, by readers that do it ----------------------------------------------


SCRIPT = """
import os, sys, fuzzing
from deploy.edge_verify import Refused
from deploy.errors import DeployError

def refuse(content): raise DeployError("no", 65)
def raise_(content): raise KeyError("what")
def break_line(content): raise Refused("two\\nlines", 65)
def crash(content): os.abort()
def leave(content): os._exit(0)
def hang(content):
    while True: pass
def gorge(content): bytearray(2 << 30)

def damaged(read):
    return fuzzing.Reader([b"whole"], [lambda *given: b"x"], lambda c: c == b"whole" or read(c))

fuzzing.SECONDS = 0.2
reads = [len, refuse, raise_, break_line, crash, leave, hang, gorge]
fuzzing.try_all({read.__name__: damaged(read) for read in reads}, 16, 0)
"""


def test_whatever_else_happens_is_noticed_and_the_next_input_tried() -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    findings = findings_in(done.stdout)
    assert findings.counts == {("len", "taken"): 2, ("refuse", "refused"): 2}
    told = [
        "raise_: KeyError: 'what'",
        "break_line: refused with 'two\\nlines'",
        "crash: ended the process (-6)",
        "leave: ended the process (0)",
        "hang: took too long",
        "gorge: MemoryError: ",
    ]
    assert [findings.failures.pop(number) for number in (*range(2, 8), *range(10, 16))] == told * 2
    assert findings.failures == {}
