"""Bad input by name, on every transport and loop, from a raw client: the next good event is handled all the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzz.probe import probing, rows_for
from tests.fuzz.rigs import RIGS, AioPikaRig, Rig
from tests.fuzz.rows import Codec
from tests.rabbitmq.helpers import is_trio

pytestmark = pytest.mark.anyio


@pytest.fixture(params=RIGS, ids=lambda kind: kind.title.replace(" ", "-"))
def rig(request: pytest.FixtureRequest) -> Rig:
    kind: type[Rig] = request.param
    return kind("" if kind.broker is None else request.getfixturevalue(f"{kind.broker}_url"))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_bad_input(rig: Rig, codec: Codec) -> None:
    await _run(rig, codec)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_bad_input_by_aio_pika(rabbitmq_url: str, codec: Codec, anyio_backend: tuple[str, Any]) -> None:
    if not is_trio(anyio_backend):
        await _run(AioPikaRig(rabbitmq_url), codec)


async def _run(rig: Rig, codec: Codec) -> None:
    problems: list[str] = []
    async with probing(rig, codec) as probe:
        for row in rows_for(rig, codec):
            finding = await probe.one(row)
            problems += finding.problems
    assert problems == []
