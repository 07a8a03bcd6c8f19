import os
import sys
from types import SimpleNamespace

import pytest

from pipeline.run import provenance


def test_versions_name_what_is_absent() -> None:
    found = provenance.versions(("numpy", "no-such-distribution"))
    assert found["no-such-distribution"] == "absent"
    assert found["numpy"][0].isdigit()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_machine_names_no_host_and_no_user() -> None:
    found = provenance.machine()
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert not {os.uname().nodename, os.environ.get("USER")} & set(map(str, found.values()))


def test_gpus_are_named_where_torch_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda index: "H200"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    provenance.machine.cache_clear()
    found = provenance.machine()
    provenance.machine.cache_clear()
    assert found["gpu"] == "2 x H200"
