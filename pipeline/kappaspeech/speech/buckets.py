"""Objects of S3 and Google Cloud Storage, and what marks the version that was read: an object may be replaced at any time.

Over fsspec's file systems, whose own reads say nothing of the version.
"""

from __future__ import annotations

from typing import Any

from kappaspeech.speech.web import Description, check_range


async def describe(system: Any, where: str) -> Description:
    """An object's size and version: S3's ETag, Google's generation."""
    info = await system._info(where)
    stamp = next((info[name] for name in ("ETag", "etag", "md5Hash", "LastModified") if info.get(name)), "")
    return Description(info.get("size"), str(stamp).strip('"'), str(info.get("generation") or ""))


async def fetch(system: Any, where: str, begin: int, end: int) -> tuple[bytes, Description | None]:
    """Bytes `begin` to `end`, or as many of them as come at once, and what S3's answer says of the object; others say nothing."""
    if not hasattr(system, "_call_s3"):
        return await system._cat_file(where, start=begin, end=end), None
    bucket, key, version = system.split_path(where)
    chosen = {} if version is None else {"VersionId": version}
    answer = await system._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={begin}-{end - 1}", **chosen)
    async with answer["Body"] as body:
        content = await body.read()
    said = answer.get("ContentRange")
    total = None if said is None else check_range({"Content-Range": said}, begin, end)
    return content, Description(total, str(answer.get("ETag", "")).strip('"'), "")
