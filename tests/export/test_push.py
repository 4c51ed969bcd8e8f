"""An export is uploaded as a whole, and nothing of the texts that were trained on is in it."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import serving

from lmsys_unsloth.export.__main__ import main

pytestmark = pytest.mark.slow


class Hub:
    """The part of the hub's interface that an upload uses."""

    def __init__(self) -> None:
        self.address, self.refused = "", False
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if self.refused:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/me/judge", "name": "me/judge"}
        if path.endswith("/preupload/main"):
            modes = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return 200, {"files": [mode | {"shouldIgnore": False} for mode in modes]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/me/judge/commit/1", "commitOid": "1", "success": True}
        return 200, {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi

    made, found = HfApi.__init__, Hub()
    with serving(found.answer) as address:
        found.address = address
        monkeypatch.setattr(HfApi, "__init__", lambda self, **k: made(self, **{**k, "endpoint": address}))
        yield found


def words(folder: Path, out: Path) -> list[str]:
    return [f"run={folder / 'fold0'}", "format=adapter", f"out={out}", "rows=0", "push=me/judge"]


def test_a_refused_upload_leaves_the_folder_and_says_how_to_go_on(
    folder: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refused = True
    assert main(words(folder, tmp_path / "out")) == 2
    assert hub.asked[0] == "POST /api/repos/create" and not hub.files
    assert "hf auth login" in capsys.readouterr().err and (tmp_path / "out" / "README.md").is_file()


def test_an_upload_holds_the_whole_folder_and_no_text_of_a_row(
    folder: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(folder, out)) == 0
    assert f"pushed: {hub.address}/me/judge" in capsys.readouterr().out
    assert [each["visibility"] for each in hub.created] == ["private"]
    written = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files == written and "adapter_model.safetensors" in written
    uploaded = b"\n".join(hub.files.values())
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = {
        text
        for row in rows
        for name in ("prompt", "response_a", "response_b")
        for text in json.loads(row[name])
    }
    long = [text for text in texts if len(text) > 20]
    assert len(long) > 20
    assert not [text for text in long if text.encode() in uploaded or json.dumps(text).encode() in uploaded]
    assert not [row["id"] for row in rows if len(row["id"]) > 6 and row["id"].encode() in uploaded]
