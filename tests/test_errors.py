"""A refusal is one line that a terminal shows as it is, whatever a stranger's file put into it."""

import pytest

from advprune.errors import BadData, Refused
from deploy.errors import DeployError

HOSTILE = "x.json: name 'a\nb\r\x1b[2J\x00\u2028\ud800' is odd → ε; rename it"
SHOWN = r"x.json: name 'a\nb\r\x1b[2J\x00\u2028\ud800' is odd → ε; rename it"


@pytest.mark.parametrize("error", [Refused(HOSTILE), BadData(HOSTILE), DeployError(HOSTILE, 65)])
def test_a_message_is_one_line_that_steers_no_terminal(error: Exception) -> None:
    assert str(error) == SHOWN
    assert str(error).isprintable()
