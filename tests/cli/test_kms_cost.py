"""`token-vault kms cost`: figures calculated by hand."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from app.cli.kms import cost

# $1 for the key and $3 for each million requests after the first 20,000; an age of 300 s fits 8,640 times in 30 days
CALCULATED = [
    # 1,000,000 - 20,000 = 980,000 -> $2.94; 1,000 users x 50 visits = 50,000, and 30,000 of them cost $0.09
    ((1_000, 1_000, 20, 1, 300), ("1,000,000", "3.94"), ("50,000", "1.09"), ("1,000,000", "3.94")),
    # no more than the free requests
    ((100, 100, 20, 1, 300), ("10,000", "1.00"), ("500", "1.00"), ("10,000", "1.00")),
    # 10 operations in visits of 4 are 3 visits; 30,000 - 20,000 = 10,000 -> $0.03
    ((10_000, 10, 4, 1, 300), ("100,000", "1.24"), ("30,000", "1.03"), ("100,000", "1.24")),
    # on 3 replicas: 2 whole visits ask 3 times each, the last has 2 operations and asks twice: 8 x 10,000 -> $0.18
    ((10_000, 10, 4, 3, 300), ("100,000", "1.24"), ("80,000", "1.18"), ("100,000", "1.24")),
    # more replicas than a visit has operations: each operation asks
    ((1_000, 100, 2, 9, 300), ("100,000", "1.24"), ("100,000", "1.24"), ("100,000", "1.24")),
    # a user of 1,000,000 operations asks at most 2 x 8,640 = 17,280 times: 172,800 for ten -> $0.4584
    ((10, 1_000_000, 20_000, 1, 300), ("10,000,000", "30.94"), ("500", "1.00"), ("172,800", "1.46")),
    # 900 s fit 2,880 times: 2 x 2 replicas x 2,880 = 11,520, ten users 115,200 -> $0.2856
    ((10, 1_000_000, 20_000, 2, 900), ("10,000,000", "30.94"), ("1,000", "1.00"), ("115,200", "1.29")),
]


@pytest.mark.parametrize(("usage", "each", "visits", "most"), CALCULATED)
def test_the_figures_match_a_calculation_by_hand(
    usage: tuple[int, ...],
    each: tuple[str, str],
    visits: tuple[str, str],
    most: tuple[str, str],
) -> None:
    names = ("--users", "--operations-per-user", "--operations-per-visit", "--replicas", "--max-age")
    arguments = [word for name, value in zip(names, usage, strict=True) for word in (name, str(value))]
    assert re.findall(r"([0-9,]+) requests +\$ *([0-9,.]+)\n", _cost(*arguments))[:3] == [each, visits, most]


def test_requests_of_readiness_checks_are_a_separate_line() -> None:
    words = _cost("--users", "1", "--operations-per-user", "1", "--replicas", "2")
    # every 10 s a probe, every 300 s the self-test's data key: 259,200 + 8,640, twice -> $1.60704
    assert re.findall(r"readyz.* ([0-9,]+) requests +\$ *([0-9,.]+)\n", words) == [("535,680", "1.61")]


def test_the_prices_and_the_model_are_printed() -> None:
    words = " ".join(_cost("--users", "5", "--operations-per-user", "7").split())
    printed = ("$1.00 for the key", "$0.03 per 10,000 requests", "20,000 free", "20 at a time within 300 seconds")
    assert [phrase for phrase in printed if phrase not in words] == []


@pytest.mark.parametrize("arguments", [(), ("--users", "0", "--operations-per-user", "1"), ("--users", "5")])
def test_a_wrong_number_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cost, arguments).exit_code == 2


def _cost(*arguments: str) -> str:
    done = CliRunner().invoke(cost, arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout
