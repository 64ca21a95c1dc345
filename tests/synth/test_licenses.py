"""Licences compose to the strictest one; combinations that exclude each other, and unknown licences, are refused."""

import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.licenses import CONDITIONS, FILE, LicenseConfig, LicenseError, compose, find, read_table

NAMES = list(yaml.safe_load(FILE.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CC0-1.0"], "CC0-1.0"),
        (["CC0-1.0", "Public-Domain"], "CC0-1.0"),
        (["CC0-1.0", "Apache-2.0"], "Apache-2.0"),
        (["cc by 4.0", "CC-BY-4.0"], "CC-BY-4.0"),
        (["MIT", "Apache-2.0"], "Apache-2.0 AND MIT"),
        (["CC-BY-4.0", "CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        (["CC-BY-SA-3.0", "Apache-2.0"], "CC-BY-SA-3.0"),
        (["CC-BY-SA-3.0", "CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-SA-4.0", "GPL-3.0-only"], "GPL-3.0-only"),
        # The terms of a model do not replace the licence of a source.
        (["CC-BY-4.0", "Llama-3.1"], "CC-BY-4.0 AND Llama-3.1"),
        (["CC-BY-4.0", "Gemma"], "CC-BY-4.0 AND Gemma"),
        (["CC0-1.0", "Qwen"], "Qwen"),
        (["CC-BY-SA-4.0", "GPL-3.0-or-later"], "GPL-3.0-only"),
        (["MPL-2.0", "GPL-3.0-or-later"], "GPL-3.0-or-later"),
        (["CC-BY-NC-4.0", "Llama-3.1"], "CC-BY-NC-4.0 AND Llama-3.1"),
        (["MIT OR CC0-1.0", "CC0-1.0"], "CC0-1.0"),
        (["GPL-3.0-only OR MIT", "CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        (["MIT AND CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
    ],
)
def test_the_strictest_licence_wins(names, expected):
    for order in itertools.permutations(names):
        assert compose(order).license == expected


@pytest.mark.parametrize(
    ("names", "reason", "message"),
    [
        (
            ["unknown", "MIT"],
            "unknown",
            r"the licence 'unknown' is unknown: records with unknown licences are not written",
        ),
        (["", "MIT"], "unknown", "'unknown' is unknown"),
        (["ACME EULA"], "unknown", r"add 'ACME EULA' to licenses\.allow"),
        (["(MIT OR X)"], "unknown", r"is unknown"),
        (["CC-BY-ND-4.0"], "no-derivatives", "CC-BY-ND-4.0 does not allow adapted works"),
        (["CC-BY-4.0", "Llama-2"], "no-training", "Llama-2 does not allow training on its outputs"),
        (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 with CC-BY-SA-4.0", "do not compose: CC-BY-SA-4.0 requires"),
        (["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"], "CC-BY-NC-SA-4.0 with CC-BY-SA-4.0", "do not compose"),
        (["CC-BY-SA-4.0", "MPL-2.0"], "CC-BY-SA-4.0 with MPL-2.0", "do not compose"),
        (["CC-BY-SA-4.0", "Llama-3.1"], "CC-BY-SA-4.0 with Llama-3.1", "do not compose"),
        (["CC-BY-SA-3.0", "GPL-3.0-only"], "CC-BY-SA-3.0 with GPL-3.0-only", "do not compose"),
        (["none"], "unknown", "the licence 'none' is unknown"),
        (["Llama-3"], "no-training", "Llama-3 does not allow training on its outputs"),
        (["tencent-hunyuan-community"], "no-training", "Tencent-Hunyuan does not allow training"),
    ],
)
def test_what_does_not_compose_is_refused(names, reason, message):
    for order in itertools.permutations(names):
        with pytest.raises(LicenseError, match=message) as error:
            compose(order)
        assert error.value.reason == reason


def test_a_named_licence_is_written():
    config = LicenseConfig(allow=("unknown", "Llama-2", "ACME EULA"))
    assert compose(["CC0-1.0", "unknown"], config).license == "unknown"
    assert compose(["ACME EULA", "MIT"], config).license == "ACME EULA AND MIT"
    assert compose(["Llama-2", "CC-BY-4.0"], config).conditions == ("attribution", "restricted-use")


def test_a_condition_can_be_forbidden():
    with pytest.raises(LicenseError, match=r"CC-BY-NC-4.0 has the condition non-commercial, which licenses\.forbid"):
        compose(["CC-BY-NC-4.0"], LicenseConfig(forbid=("non-commercial",)))
    with pytest.raises(PlamoError, match=r"LicenseConfig\.forbid=\('profit',\) is not allowed"):
        LicenseConfig(forbid=("profit",))


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
def test_a_composition_has_every_condition_and_does_not_depend_on_the_order(names):
    results = set()
    for order in (names, names[::-1], sorted(names), [*names, names[0]]):
        try:
            found = compose(order)
        except LicenseError as error:
            results.add(error.reason)
            continue
        results.add(found)
        # A licence with `also` may be replaced by one with the same conditions.
        wanted = frozenset().union(*(find(name).conditions for name in names))
        assert set(found.conditions) == wanted
        # Composing again changes nothing.
        assert compose([found.license]) == found
    assert len(results) == 1


def test_names_are_ids_of_the_spdx_list_or_terms_of_models():
    others = {"Public-Domain", "Research-Only"}
    for name in NAMES:
        if find(name).terms or name in others:
            with pytest.raises(InvalidLicenseExpression):
                canonicalize_license_expression(name)
        else:
            assert canonicalize_license_expression(name) == name


def test_training_on_the_outputs_of_a_named_model_needs_a_notice():
    for name in ("Llama-3.1", "Llama-3.2", "Llama-3.3", "Llama-4", "Gemma", "Qwen", "PLaMo-Community"):
        assert "model-notice" in compose([name, "CC0-1.0"]).conditions
        with pytest.raises(LicenseError, match="has the condition model-notice"):
            compose([name], LicenseConfig(forbid=("model-notice",)))


def test_a_wrong_table_is_refused():
    with pytest.raises(PlamoError, match=f"X has the condition 'profit': it must be one of {CONDITIONS[0]}"):
        read_table({"X": {"conditions": ["profit"]}})
    with pytest.raises(PlamoError, match="the name 'x' occurs twice"):
        read_table({"X": {}, "Y": {"aliases": ["x"]}})
