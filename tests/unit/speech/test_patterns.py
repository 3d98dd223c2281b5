"""Names of shards, without a file."""

from __future__ import annotations

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.patterns import beside, expand_braces, has_glob, shard_name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s.tar", ["s.tar"]),
        ("{a,b}/s-{08..10}.tar", [f"{folder}/s-{number}.tar" for folder in "ab" for number in ("08", "09", "10")]),
        ("s-{1..7..3}.tar", ["s-1.tar", "s-4.tar", "s-7.tar"]),
        ("s-{b..d}.tar", ["s-b.tar", "s-c.tar", "s-d.tar"]),
        ("{a,{b,c}}.tar", ["a.tar", "b.tar", "c.tar"]),
    ],
)
def test_a_brace_list_stands_for_its_names(pattern, names):
    assert list(expand_braces(pattern)) == names


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("s-{0..1000000}.tar", "stands for 1,000,001 shards"),
        ("{0..999}{0..999}{0..999}{0..999}", "stands for 1,000,000,000,000 shards"),
        ("s-{0..9999999999999999999}.tar", "more than 18 digits"),
        ("s-{0..3.tar", "a brace has no partner"),
        ("{" * 30 + "a,b" + "}" * 30, "nested more than 20 deep"),
    ],
)
def test_a_brace_list_that_is_broken_or_endless_is_refused_before_it_is_expanded(pattern, said):
    with pytest.raises(DataError, match=said):
        expand_braces(pattern)


@pytest.mark.parametrize(
    ("pattern", "is_glob"),
    [
        ("a/*.tar", True),
        ("a/s-?.tar", True),
        ("a/s.tar", False),
        ("https://host/s.tar?sig=a*b", False),
        ("https://[::1]/s.tar", False),
        ("https://host/*.tar?sig=1", True),
        ("s3://bucket/s-[01].tar", True),
    ],
)
def test_a_query_and_a_host_are_no_glob(pattern, is_glob):
    assert has_glob(pattern) is is_glob


def test_what_stands_beside_a_shard_comes_before_its_query():
    assert beside("a/s.tar", ".index") == "a/s.tar.index"
    assert beside("s3://b/s.tar?x", ".index") == "s3://b/s.tar?x.index"
    assert beside("https://host/s.tar?sig=1#top", ".index") == "https://host/s.tar.index?sig=1#top"


def test_a_shards_own_name_is_without_its_folder_and_signature():
    assert shard_name("a/b/s.tar") == "s.tar"
    assert shard_name("https://host/a/s.tar?sig=x/y") == shard_name("https://host/a/s.tar?sig=z") == "s.tar"
