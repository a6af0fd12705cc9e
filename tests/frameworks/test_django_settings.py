"""The setting ``DISPYTCH``, and the system checks on it and on what it names."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test.utils import override_settings

from dispytch import Event, EventDispatcher, HandlerGroup, Router, consumer_from_url
from dispytch.django import conf, dispatcher, emit
from dispytch.django.checks import check, check_deployment
from dispytch.errors import ConfigurationError
from dispytch.memory import MemoryConsumer
from dispytch.testing import running_in_thread
from tests.frameworks.project import Placed, changed
from tests.support import CANARY

router = Router()
group = HandlerGroup("placed")
number = 3
seen: list[str] = []


@router.handler(Placed)
def by_router(event: Event[Placed]) -> None:
    seen.append("router")


@group.handler(event="Placed")
def by_group(event: Event[Placed]) -> None:
    seen.append("group")


own = EventDispatcher(consumer_from_url("memory://own", group_id="own"))
own.add_router(router)

nothing = EventDispatcher(consumer_from_url("memory://own", group_id="own"))
unstartable = EventDispatcher(consumer_from_url("redis+stream://127.0.0.1:1", group_id="own"))


@unstartable.handler(topic="orders.{shop}")
def pattern(event: Event[Placed]) -> None: ...


@pytest.fixture(autouse=True)
def discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module is the handlers of the only app."""
    monkeypatch.setitem(sys.modules, "dispytch.django.handlers", sys.modules[__name__])
    seen.clear()


def found(**values: Any) -> list[tuple[str, str]]:
    with changed(**values):
        return [(str(one.id).removeprefix("dispytch."), f"{one.msg} {one.hint or ''}") for one in check()]


def test_a_right_setting() -> None:
    assert found() == []
    assert found(EMITTERS={"default": {"TIMEOUT": None}})[0][0] == "W001"
    assert run_checks(tags=["dispytch"]) == []


@pytest.mark.parametrize(
    ("values", "id", "text"),
    [
        ({"URLL": "x"}, "E002", "DISPYTCH has the unknown key 'URLL'. Did you mean 'URL'?"),
        ({"nonsense": 1}, "E002", "Its keys are: URL, SOURCE"),
        ({"EMITTERS": {"a": {"timeout": 1}}}, "E002", "['a'] has the unknown key 'timeout'. Did you mean 'TIMEOUT'?"),
        ({"DISPATCHERS": {"a": {"TIMEOUT": 1}}}, "E002", "['DISPATCHERS']['a'] has the unknown key 'TIMEOUT'"),
        ({"URL": None, "EMITTERS": None}, "E003", "DISPYTCH['DISPATCHERS']['default'] has no URL. Give it one, or"),
        ({"EMITTERS": {"a": {}}, "URL": None, "GROUP": None}, "E003", "DISPYTCH['EMITTERS']['a'] has no URL"),
        ({"GROUP": None, "DISPATCHERS": {"a": {}}}, "E003", "DISPYTCH['DISPATCHERS']['a'] has no GROUP"),
        ({"URL": 3}, "E004", "['URL'] must be a non-empty string and is of type int"),
        ({"SOURCE": ""}, "E004", "['SOURCE'] must be a non-empty string"),
        ({"TIMEOUT": 0}, "E004", "['TIMEOUT'] must be in seconds and positive, or None to wait for ever, and is of"),
        ({"TIMEOUT": True}, "E004", "['TIMEOUT']"),
        ({"TIMEOUT": float("nan")}, "E004", "['TIMEOUT']"),
        ({"DISCOVER": "handlers"}, "E004", "['DISCOVER'] must be a list of strings and is of type str"),
        ({"EMITTERS": ["a"]}, "E004", "['EMITTERS'] must be a dict by alias"),
        ({"EMITTERS": {"a": 3}}, "E004", "['EMITTERS']['a'] must be a dict, or an import string"),
        ({"DISPATCHERS": {"a": {"OPTIONS": 3}}}, "E004", "must be a dict of arguments of EventDispatcher"),
        ({"DISPATCHERS": {"a": {"ROUTERS": "x:y"}}}, "E004", "['ROUTERS'] must be a list of strings"),
        ({"ON_FAILURE": 3}, "E004", "['ON_FAILURE'] must be a function, or the import string of one"),
        ({"URL": f"nonsense://user:{CANARY}@host"}, "E005", "no transport has the URL scheme 'nonsense'"),
        ({"URL": f"redis://user:{CANARY}@host:port"}, "E005", "the emitter 'default' cannot be made"),
        ({"URL": CANARY}, "E005", "a broker's URL begins with its scheme"),
        (
            {"DISPATCHERS": {"a": {"OPTIONS": {"concurency": 3}}}},
            "E005",
            "has 'concurency', which EventDispatcher has not; did you mean 'concurrency'?",
        ),
        ({"DISPATCHERS": {"a": {"OPTIONS": {"concurrency": 0}}}}, "E005", "concurrency must be at least 1"),
        ({"ON_FAILURE": "nowhere.at_all"}, "E006", "ON_FAILURE'] cannot be used: ModuleNotFoundError"),
        ({"ON_FAILURE": f"{__name__}:number"}, "E006", "names something of type int, which is no function"),
        ({"EMITTERS": {"a": "nowhere:at_all"}}, "E007", "DISPYTCH['EMITTERS']['a'] = 'nowhere:at_all' cannot be"),
        ({"DISPATCHERS": {"a": f"{__name__}:number"}}, "E007", "is no dispytch._runtime.dispatcher.EventDispatcher"),
        ({"DISPATCHERS": {"a": {"ROUTERS": [f"{__name__}:number"]}}}, "E007", "is no dispytch"),
        ({"DISPATCHERS": {"a": f"{__name__}:nothing"}}, "E008", "would not start: no handler is registered"),
        ({"DISPATCHERS": {"a": f"{__name__}:unstartable"}}, "E008", "Redis Streams have none"),
        ({"GROUP": None}, "W002", "there are handlers, and no dispatcher that would call them. Set DISPYTCH['GROUP']"),
    ],
)
def test_mistakes(values: dict[str, Any], id: str, text: str) -> None:
    messages = found(**values)
    assert [one for one in messages if one[0] == id], messages
    assert text in " ".join(message for _, message in messages), messages
    assert CANARY not in str(messages)


@pytest.mark.parametrize("given", [None, "redis://localhost"])
def test_no_setting_at_all(given: Any) -> None:
    with override_settings(DISPYTCH=given):
        assert [one.id for one in check()] == ["dispytch.E001"]
        with pytest.raises(ImproperlyConfigured, match=r"DISPYTCH.*\{'URL'"):
            emit(Placed(n=1))


def test_autocommit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.DATABASES["default"], "AUTOCOMMIT", False)
    assert [one.id for one in check()] == ["dispytch.W003"]
    with changed(OUTBOX=True):
        assert not check()


def test_deployment() -> None:
    assert [one.id for one in check_deployment()] == ["dispytch.W004"] * 3
    with changed(URL="redis://localhost", EMITTERS={"default": f"{__name__}:own"}):
        assert check_deployment() == []


def test_no_handlers_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dispytch.django.handlers")
    assert found() == []
    assert found(GROUP=None) == []


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ({"GROUP": "a"}, ["group", "router"]),
        ({"GROUP": "a", "ROUTERS": [f"{__name__}:router"]}, ["router"]),
        ({"GROUP": "a", "ROUTERS": [f"{__name__}.group"]}, ["group"]),
        (f"{__name__}:own", ["router"]),
    ],
)
def test_which_handlers_it_has(one: Any, expected: list[str]) -> None:
    with changed(DISPATCHERS={"a": one}), ExitStack() as stack:
        app = stack.enter_context(running_in_thread(dispatcher("a")))
        app.emit(Placed(n=1))
        app.idle()
        assert sorted(seen) == expected


def test_options() -> None:
    with changed(DISPATCHERS={"a": {"OPTIONS": {"max_deliveries": 1, "concurrency": 3}}}):
        made = dispatcher("a")
        assert (made._tuning.max_deliveries, made._tuning.concurrency) == (1, 3)
        assert isinstance(made.consumers[0], MemoryConsumer)
        assert made.consumers[0].group_id == "tests"
    with pytest.raises(ImproperlyConfigured, match="there is no dispatcher 'b' in DISPYTCH"):
        dispatcher("b")
    with changed(DISPATCHERS={"a": {"URL": "nonsense://x"}}), pytest.raises(ConfigurationError):
        dispatcher("a")


def test_without_django() -> None:
    code = "import sys; sys.modules['django'] = None\nimport dispytch.django"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'MissingExtraError: Django is not installed: pip install "dispytch[django]"' in done.stderr


def test_no_password_is_in_what_is_read() -> None:
    """Reports of errors show the variables of each frame."""
    dispatchers = {"other": {"URL": f"kafka://user:{CANARY}@127.0.0.1:1", "OPTIONS": {}}}
    with changed(URL=f"amqp://user:{CANARY}@127.0.0.1:1", DISPATCHERS=dispatchers):
        assert CANARY not in repr(conf.current())
