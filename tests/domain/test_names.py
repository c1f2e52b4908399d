"""Names: what may be a slug, a domain or an address, and how ids are built and taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import ids
from domain.people import normalise_email
from domain.tenants import normalise_domain

LONG_LABEL = "x" * 63
LONGEST = ".".join([LONG_LABEL, LONG_LABEL, LONG_LABEL, "x" * 61])


@pytest.mark.parametrize("slug", ["abc", "a1b", "acme-dk", "a-1-b", "a" * 40, "platform-admins"])
def test_slugs(slug: str) -> None:
    """Lower-case words of letters and digits with single hyphens between."""
    assert ids.is_slug(slug)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab",
        "a" * 41,
        "1abc",
        "-abc",
        "abc-",
        "a--b",
        "Acme",
        "a_b",
        "a.b",
        "a b",
        "acme\n",
        "\nacme",
        "æøå",
        "ａｂｃ",
        "a/b",
    ],
)
def test_what_is_no_slug(text: str) -> None:
    """Anything that another system could read in another way is refused."""
    assert not ids.is_slug(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.org", "example.org"),
        ("  Mail.EXAMPLE.org ", "mail.example.org"),
        ("example.org.", "example.org"),
        ("München.de", "xn--mnchen-3ya.de"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("XN--MNCHEN-3YA.de", "xn--mnchen-3ya.de"),
        ("mu\u0308nchen.de", "xn--mnchen-3ya.de"),
        ("faß.de", "xn--fa-hia.de"),
        ("例え。テスト。", "xn--r8jz45g.xn--zckzah"),
        ("1.2.3.4.example.org", "1.2.3.4.example.org"),
        ("ab--cd.org", "ab--cd.org"),
        (LONGEST, LONGEST),
        (f"{LONGEST}.", LONGEST),
    ],
)
def test_domains_have_one_spelling(text: str, name: str) -> None:
    """However a domain is written, it is one name."""
    assert normalise_domain(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "localhost",
        "example.org..",
        ".example.org",
        "a..b",
        "127.0.0.1",
        "example.123",
        "１２３.４５",
        "-a.org",
        "a-.org",
        "a_b.org",
        "a b.org",
        "a\n.org",
        "a.org\nb",
        "a.org/x",
        "a@b.org",
        "*.example.org",
        "[::1]",
        "xn--zzzzzz99999.org",
        "\u200d.org",
        f"{'x' * 64}.org",
        f"{LONGEST}x",
    ],
)
def test_what_is_no_domain(text: str) -> None:
    """What is not the full name of a mail domain is refused."""
    with pytest.raises(ValueError):
        normalise_domain(text)


@given(st.text(max_size=60))
def test_a_normal_domain_stays_as_it_is(text: str) -> None:
    """Whatever is typed, it is refused or becomes a name that means itself."""
    try:
        name = normalise_domain(text)
    except ValueError:
        return
    assert normalise_domain(name) == name
    assert name.isascii()
    assert name == name.strip()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("Ada@Example.ORG", "ada@example.org"),
        ("ada+news@example.org", "ada+news@example.org"),
        ("ada@Exämple.org", "ada@xn--exmple-cua.org"),
        ("ada@staging.test", "ada@staging.test"),
        ("o'neil@example.org", "o'neil@example.org"),
    ],
)
def test_addresses_have_one_spelling(text: str, address: str) -> None:
    """An address is compared in one form, whoever wrote it."""
    assert normalise_email(text) == address
    assert normalise_email(address) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "ada@",
        "@example.org",
        "ada@test",
        "ada@localhost",
        "ada@example.org.",
        "ada@[127.0.0.1]",
        '"a b"@example.org',
        "Ada <ada@example.org>",
        "ada@example.org, eve@example.org",
        "ada@example.org\n",
        "ada@example.org\r\nBcc: eve@example.org",
        "ädå@example.org",
        f"{'a' * 250}@example.org",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """What is not the plain address of one person is refused."""
    with pytest.raises(ValueError):
        normalise_email(text)


def test_workflow_ids_go_both_ways() -> None:
    """A workflow's id tells its operation, whatever the lock is called."""
    assert ids.workflow_id(ids.tenant_lock("acme"), "01OP") == "tenant/acme/01OP"
    assert ids.operation_of_workflow("tenant/acme/01OP") == "01OP"


@pytest.mark.parametrize("step", ["ocis.space", "stalwart.dkim.mail.example.org", "stalwart.domain.1.2.example"])
@pytest.mark.parametrize("generation", [1, 12])
def test_activity_ids_go_both_ways(step: str, generation: int) -> None:
    """An activity's id tells its step, also when the step ends in a domain."""
    assert ids.step_of_activity(ids.activity_id(step, generation)) == step


@pytest.mark.parametrize("activity", ["1", "close_operation", "platform.1", "ocis.space", "ocis.space.x", ""])
def test_activities_that_are_no_steps(activity: str) -> None:
    """A plain activity belongs to no step."""
    assert ids.step_of_activity(activity) is None


def test_a_tenant_never_gets_a_group_of_ours() -> None:
    """The groups of operators and partners' staff cannot be spelt as a tenant's."""
    for group in (ids.OPERATORS_GROUP, ids.PARTNER_STAFF_GROUP):
        assert not group.startswith(ids.tenant_group(""))


def test_names_given_to_vendors() -> None:
    """Names that stand in outside systems never change."""
    assert ids.tenant_group("acme") == "dezky-tenant-acme"
    assert ids.drive_alias("acme") == "project/dezky-acme"
    assert ids.tenant_marker("acme") == "dezky-tenant=acme;"
    assert ids.product_id("business-monthly") == "dezky_business-monthly"
    assert ids.price_lookup_key("business-monthly", "EUR", 2) == "price:business-monthly:EUR:2"
    assert ids.vendor_key("tenant/acme", "01OP", "ocis.space", 1) == "tenant/acme:01OP:ocis.space:1"
