"""Every variant of `conf/attention`, found by glob, against every property of the contract."""

import pytest

from attention.conformance.subject import BLOCK_SIZE, NUM_FEATURES, Property, Subject
from attention.conformance.suite import PROPERTIES, examine
from lra.variants import load_miniature, variant_names


@pytest.fixture(scope="module", params=variant_names())
def subject(request):
    return Subject(request.param, load_miniature(request.param, NUM_FEATURES, BLOCK_SIZE))


@pytest.mark.parametrize("checked", PROPERTIES, ids=lambda checked: checked.name)
def test_a_variant_keeps_what_it_promises_and_no_more(subject: Subject, checked: Property):
    verdict = examine(subject, checked)
    if verdict.error is not None:
        raise verdict.error
    assert not verdict.is_error, f"{subject.name}, {checked.name}: {verdict.explanation}"
