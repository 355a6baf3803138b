import json

import pytest

from tests.audit import verdict

_CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
_FAULTY = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.1", "8.4"]}]}
_UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.14.1)"}


@pytest.mark.parametrize(
    ("libraries", "lines", "code"),
    [
        ([_CLEAN], ["Libraries checked: 1; vulnerabilities known: 0."], 0),
        (
            [_CLEAN, _UNKNOWN],
            ["Libraries checked: 1; vulnerabilities known: 0.", "Not known to the service: torch."],
            0,
        ),
        (
            [_CLEAN, _FAULTY],
            ["pillow 9.0: PYSEC-1, fixed in 9.1, 8.4", "Libraries checked: 2; vulnerabilities known: 1."],
            1,
        ),
        ([_UNKNOWN], ["Nothing was checked: the vulnerability service cannot be reached from here."], 0),
    ],
)
def test_what_an_audit_found_is_said_and_what_it_did_not_look_at(libraries, lines, code):
    assert verdict(json.dumps({"dependencies": libraries, "fixes": []})) == (lines, code)


def test_an_audit_without_a_service_says_that_nothing_was_checked():
    assert verdict("") == (["Nothing was checked: the vulnerability service cannot be reached from here."], 0)
