from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from pipelines.errors import StoreError
from pipelines.store.provenance import ENVIRONMENT_FIELDS, IDENTITY_FIELDS, SCHEMA_VERSION, Provenance
from tests.store.stores import make_provenance

_OTHER: dict[str, Any] = {
    "representations": ("first",),
    "dim": 4,
    "sample_rate_hz": 24000,
    "versions": {"torch": "9.9", "numpy": "2.4"},
}


def _changed(name: str) -> Provenance:
    return make_provenance(**{name: _OTHER.get(name, "something else")})


def test_attributes_come_back_from_json() -> None:
    made = make_provenance()
    attributes = json.loads(json.dumps(made.to_attributes()))
    assert attributes["schema_version"] == SCHEMA_VERSION
    assert Provenance.from_attributes({**attributes, "block_rows": 4}, origin="x") == made


def test_attributes_do_not_depend_on_the_order_of_versions() -> None:
    one = make_provenance(versions={"torch": "1", "numpy": "2"})
    other = make_provenance(versions={"numpy": "2", "torch": "1"})
    assert json.dumps(one.to_attributes()) == json.dumps(other.to_attributes())


@pytest.mark.parametrize("schema", [None, 0, SCHEMA_VERSION + 1, str(SCHEMA_VERSION)])
def test_other_schema(schema: object) -> None:
    attributes = {**make_provenance().to_attributes(), "schema_version": schema}
    with pytest.raises(
        StoreError, match=rf"c/e/clean\.zarr .* schema version is {schema!r}, expected {SCHEMA_VERSION}"
    ):
        Provenance.from_attributes(attributes, origin="c/e/clean.zarr")


def test_columns_are_written_where_there_are_any() -> None:
    """Stores that were made before columns had names stay readable, and stay the same bytes."""
    assert "columns" not in make_provenance().to_attributes()
    named = make_provenance(columns=("f0:semitones", "loudness:level_db"))
    attributes = json.loads(json.dumps(named.to_attributes()))
    assert Provenance.from_attributes(attributes, origin="x") == named
    assert named.identity_digest() == make_provenance().identity_digest()


@pytest.mark.parametrize("name", [item.name for item in fields(Provenance) if item.name != "columns"])
def test_missing_attribute(name: str) -> None:
    attributes = make_provenance().to_attributes()
    del attributes[name]
    with pytest.raises(StoreError, match="not a store that this version of hyfuse reads"):
        Provenance.from_attributes(attributes, origin="x")


@pytest.mark.parametrize("name", IDENTITY_FIELDS)
def test_identity_fields_decide(name: str) -> None:
    mine, theirs = make_provenance(), _changed(name)
    assert mine.identity_digest() != theirs.identity_digest()
    ((field, found, asked),) = mine.differences(theirs, IDENTITY_FIELDS)
    assert field == name
    assert found != asked


@pytest.mark.parametrize("name", sorted({item.name for item in fields(Provenance)} - set(IDENTITY_FIELDS)))
def test_other_fields_do_not(name: str) -> None:
    mine, theirs = make_provenance(), _changed(name)
    assert mine.identity_digest() == theirs.identity_digest()
    assert mine.differences(theirs, IDENTITY_FIELDS) == []
    assert bool(mine.differences(theirs, ENVIRONMENT_FIELDS)) == (name in ENVIRONMENT_FIELDS)


def test_what_decides_the_numbers_is_identity() -> None:
    """Encoder, weights, manifest and condition: the design's list of what makes another store."""
    assert {
        "encoder",
        "weights_kind",
        "weights_digest",
        "manifest_digest",
        "condition",
        "precision",
        "resampler",
    } <= set(IDENTITY_FIELDS)
    assert not set(IDENTITY_FIELDS) & set(ENVIRONMENT_FIELDS)


def test_digests_are_shortened_and_lists_joined_in_messages() -> None:
    theirs = make_provenance(weights_digest="c3" * 32, representations=("third",))
    differences = {name: values for name, *values in make_provenance().differences(theirs, IDENTITY_FIELDS)}
    assert differences["weights_digest"] == ["b2b2b2b2b2b2…", "c3c3c3c3c3c3…"]
    assert differences["representations"] == ["first, second", "third"]


def test_of_versions_only_those_that_differ_are_named() -> None:
    theirs = replace(make_provenance(), versions={"torch": "2.14", "numpy": "2.4", "zarr": "3"})
    assert make_provenance().differences(theirs, ENVIRONMENT_FIELDS) == [
        ("versions", "torch 2.13, zarr (none)", "torch 2.14, zarr 3")
    ]


def test_random_weights_are_not_pretrained_ones_of_the_same_digest() -> None:
    mine, theirs = make_provenance(), make_provenance(weights_kind="pretrained")
    assert mine.identity_digest() != theirs.identity_digest()
