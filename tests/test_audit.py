import json
import re

import pytest

from tests.audit import verdict

_CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
_FAULTY = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.1", "8.4"]}]}
_UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.14.1)"}


@pytest.mark.parametrize(
    ("libraries", "lines", "code"),
    [
        ([_CLEAN], [r"checked: 1; .* 0\.$"], 0),
        ([_CLEAN, _UNKNOWN], [r"checked: 1; .* 0\.$", "torch"], 0),
        ([_CLEAN, _FAULTY], [r"pillow 9\.0: PYSEC-1, .* 9\.1, 8\.4", r"checked: 2; .* 1\.$"], 1),
        ([_UNKNOWN], ["Nothing"], 0),
        ([], ["Nothing"], 0),
    ],
)
def test_what_an_audit_found_is_said_and_what_it_did_not_look_at(libraries, lines, code):
    found, status = verdict(json.dumps({"dependencies": libraries, "fixes": []}) if libraries else "")
    assert status == code
    for line, pattern in zip(found, lines, strict=True):
        assert re.search(pattern, line)
