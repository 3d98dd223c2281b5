"""Secrets of URLs and control characters stay out of what a person or a log gets."""

from __future__ import annotations

import pickle

import pytest

from kappaspeech.diagnosis.finding import Finding
from kappaspeech.errors import ConfigError, DataError, RankFailure
from kappaspeech.escaping import for_terminal
from kappaspeech.redaction import find_secrets, redact, redact_values, restore_secrets
from kappaspeech.speech.loading import BadSample

SECRET = "hunter2"
URLS = [
    f"https://me:{SECRET}@host/a/x.tar",
    f"https://{SECRET}@host/x.tar",
    f"http://me:pass@{SECRET}@host/x.tar",
    f"https://host/x.tar?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://host/x.tar?{SECRET}",
    f"HTTPS://host/x.tar?sig={SECRET}%2B==",
    f"s3://key:{SECRET}@bucket/x.tar",
    f"s3://bucket/x.tar?token={SECRET}",
    f"gs://bucket/x.tar?token={SECRET}",
    f"ftp://me:{SECRET}@host/x.tar",
    f"https://me:{SECRET}@host/{{000000..000009}}.tar?sig={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("text", ["{}", "{} can't be read.", "'{}', \"{}\"", "({})", "«{}»", "two {}, {}: no"])
def test_no_text_holds_the_secret_of_a_url(url, text):
    shown = redact(text.replace("{}", url))
    assert SECRET not in shown
    assert "***" in shown
    assert redact(shown) == shown
    # what is around it stays
    before, after = text.split("{}")[0], text.rsplit("{}")[-1]
    assert shown.startswith(before)
    assert shown.endswith(after)
    host = "bucket" if "bucket" in url else "host"
    assert f"@{host}/" in shown or f"://{host}/" in shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/train-?????.tar",
        "https://host/x.tar",
        "a?b=c",
        "me@host",
        "/data/x?.tar",
        "gs://b/[0-9]?.tar: none",
        "https://host/a@b.tar",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert redact(text) == text


def test_errors_findings_and_bad_samples_are_redacted_when_they_are_made():
    url = URLS[0]
    bad = BadSample("k", "shard", url, f"{url} is cut")
    finding = Finding("data", "problem", f"{url} is gone", f"index {url}")
    texts = [str(DataError(f"{url} can't be read")), str(RankFailure(1, f"{url} can't be read")), repr(bad), repr(finding)]
    texts += [str(pickle.loads(pickle.dumps(ConfigError(url))))]
    assert not [text for text in texts if SECRET in text]


def test_secrets_are_found_by_place_and_put_back_where_nothing_has_changed():
    content = {"data": {"train": [{"shards": URLS[0]}, {"shards": "x.tar"}]}, "seed": 3, "arm": None}
    secrets = find_secrets(content)
    assert secrets == {"data.train.0.shards": URLS[0]}
    hidden = redact_values(content)
    assert SECRET not in repr(hidden)
    assert restore_secrets(hidden, secrets) == content
    hidden["data"]["train"][0]["shards"] = "https://***@elsewhere/x.tar"
    assert SECRET not in repr(restore_secrets(hidden, secrets))


def test_a_terminal_gets_no_control_characters():
    text = "a\x1b]0;owned\x07\x1b[2J\r\x9b31m‮b\ud800\n\tgrüne κ"
    shown = for_terminal(text)
    assert shown == "a\\x1b]0;owned\\x07\\x1b[2J\\r\\x9b31m\\u202eb\\ud800\n\tgrüne κ"
    shown.encode()
