"""Documents of generated applications are valid, and can be written and shown."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings

from dispytch.asyncapi import to_json, to_yaml
from tests.asyncapi.checks import check, check_page
from tests.asyncapi.generated import documents
from tests.support import examples


@given(documents())
@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_applications(found: dict[str, Any]) -> None:
    check(found)
    assert json.loads(to_json(found)) == found
    assert yaml.safe_load(to_yaml(found)) == found
    check_page(found)
