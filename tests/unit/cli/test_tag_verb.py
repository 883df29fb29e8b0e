"""Tags on the command line: given, listed, heeded by prune, taken away."""

from __future__ import annotations

from typing import Any


def backed_up(configured: Any, tmp_path: Any, count: int) -> list[str]:
    ids = []
    for number in range(count):
        (tmp_path / "volume" / "file").write_bytes(b"%d" % number * 1000)
        ids.append(configured("backup", "--json").json["id"])
    return ids


def test_from_tag_to_prune(configured: Any, tmp_path: Any) -> None:
    with (tmp_path / "smsnapd.toml").open("a") as file:
        file.write('[retention]\nkeep_within = "0s"\nhourly = 0\ndaily = 1\nweekly = 0\nmonthly = 0\n')
    assert configured("tag").status == 2  # there is nothing to tag yet
    ids = backed_up(configured, tmp_path, 6)
    ran = configured("tag", ids[1][:12], "before-upgrade")
    assert ran.status == 0 and ids[1] in ran.out and "before-upgrade" in ran.out
    configured("tag", "latest", "v1")
    assert [(row["snapshot"], row["tag"]) for row in configured("tag", "--json").json] == [
        (ids[1], "before-upgrade"),
        (ids[5], "v1"),
    ]
    assert configured("tag", ids[1], "before-upgrade", "--json").json == configured("tag", "--json").json
    dry = configured("prune", "--dry-run", "--json").json["volumes"][0]
    ran = configured("prune", "--json")
    assert (ran.status, ran.json["volumes"][0]["removed"]) == (0, 3) == (0, dry["removed"])
    assert [row["id"] for row in configured("snapshots", "--json").json] == [ids[1], ids[4], ids[5]]
    assert configured("cat", ids[1], "file").out == "1" * 1000
    configured("tag", "--remove", ids[1], "before-upgrade")
    assert configured("prune", "--json").json["volumes"][0]["removed"] == 1
    assert [row["id"] for row in configured("snapshots", "--json").json] == [ids[4], ids[5]]
    assert [row["tag"] for row in configured("tag", "--json").json] == ["v1"]
    assert configured("check").status == 0


def test_what_cannot_be_done(configured: Any, tmp_path: Any) -> None:
    backed_up(configured, tmp_path, 1)
    assert configured("tag", "latest").status == 2
    assert configured("tag", "--remove").status == 2
    assert configured("tag", "latest", "two words").status == 2
    assert configured("tag", "ffffffff", "name").status == 2
    assert configured("tag").out == "no tags\n"
