"""The loops that ``anyio_backend`` names are the ones that run."""

import asyncio

import anyio.lowlevel
import pytest
import trio


@pytest.mark.anyio
async def test_each_loop_is_what_its_id_says(request: pytest.FixtureRequest) -> None:
    await anyio.lowlevel.checkpoint()
    loop_id = request.node.callspec.id
    if loop_id == "trio":
        assert trio.lowlevel.current_task()
        return
    loop = asyncio.get_running_loop()
    assert type(loop).__module__.partition(".")[0] == loop_id
    assert not loop.get_debug()
