"""Large payloads in what commands print: fetched where that is no trouble, else said where they are."""

import pytest
from tests.cli.support import write_shop

SHOP = """
from respool import App

app = App("shop")

@app.task
def twice(text: str) -> str:
    if text.startswith("bad"):
        raise ValueError("bad")
    return text + text
"""


def test_large_payloads_are_shown(cli, folder, monkeypatch):
    write_shop(folder, SHOP)
    from importlib import import_module

    from respool.reference import unpack
    from respool.testing import work

    monkeypatch.syspath_prepend(str(folder))
    app = import_module("shop").app
    twice = app.tasks["twice"]
    large, larger, bad = twice.delay("x" * 100_000), twice.delay("y" * 2_000_000), twice.delay("bad" * 50_000)
    work(app)
    url = ("--url", f"sqlite:///{folder / 'respool.db'}")
    for where in (("-A", "shop"), url):
        data = cli.data(*where, "show", large.id)
        assert data["input"]["args"] == ["x" * 100_000]
        assert data["groups"][0]["result"] == "x" * 200_000
        assert data["size"] == 100_008
        data = cli.data(*where, "show", larger.id)
        reference = unpack(larger.record().body)
        assert data["input"] == {
            "blob": {"name": reference.name, "size": 2_000_008, "sha256": reference.digest.hex()},
            "error": "2,000,008 bytes in the blob store; --resolve shows them",
        }
        assert data["groups"][0]["result"] is None
        assert data["groups"][0]["result_error"] == "4,000,005 bytes in the blob store; --resolve shows them"
        data = cli.data(*where, "show", larger.id, "--resolve")
        assert data["input"]["args"] == ["y" * 2_000_000]
        assert data["groups"][0]["result"] == "y" * 4_000_000
        assert "twice('yyy" in cli(*where, "show", larger.id)
        assert "returned 'yyy" in cli(*where, "show", larger.id)
        assert cli.data(*where, "dead", "show", bad.id)["input"]["args"] == ["bad" * 50_000]
        assert "twice('badbad" in cli(*where, "dead", "show", bad.id)
        listed = cli.rows(*where, "calls", "--oldest")
        assert [each["size"] for each in listed] == [100_008, 2_000_008, 150_008]
        assert listed[0]["input"]["blob"]["size"] == 100_008
        assert "(100,008 bytes in the blob store)" in cli(*where, "calls")
    assert cli.data(*url, "check")["ok"]
    (folder / "respool.db-blobs" / unpack(large.record().body).name).unlink()
    for where in (("-A", "shop"), url):
        told = cli(*where, "check", code=1)
        assert "Wrong: 1 large payloads are gone from file://" in told
        assert f"of the records: {large.id}" in told
    assert "is gone: past retention, or removed by somebody else" in cli(*url, "show", large.id)
    app.close()


@pytest.mark.parametrize("named", [True, False])
def test_who_knows_no_store_is_told_where_one_is_named(cli, folder, app, monkeypatch, named):
    """As on a server, where there is no folder beside a file."""
    id = app.tasks["fetch"].delay("x" * 100_000).id
    monkeypatch.setattr("respool.blobs.default_url", lambda location: None)
    monkeypatch.setattr(app.payloads, "store", None)
    where = ("-A", "shop") if named else ("--url", f"sqlite:///{folder / 'respool.db'}")
    how = "name it in the app that -A names, App(…, blobs='s3://…'), or by RESPOOL_BLOBS"
    told = cli(*where, "check")
    assert f"large payloads were not looked at: there is no store of large payloads here: {how}\n" in told
    assert named or how in cli.data(*where, "show", id)["input"]["error"]
