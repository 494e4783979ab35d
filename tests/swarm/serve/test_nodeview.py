"""A node's page, reached the way a browser does: through the port on which the node speaks its own protocol."""

from __future__ import annotations

import aiohttp

from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.serve.nodeview import node_view
from tests.swarm.serve import scenes


async def test_a_node_shows_itself_on_its_own_port() -> None:
    async with (
        node_view(scenes.FirstNode(), scenes.MANIFEST) as protocols,
        Switchboard(Identity.generate()) as board,
    ):
        board.http = protocols
        host, port = await board.listen("127.0.0.1", 0)
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            async with http.get("/") as page:
                assert page.status == 200 and "wanswarm" in await page.text()
            async with http.get("/api/state", headers={"Host": "node.example:7000"}) as answer:
                state = await answer.json()
                assert state["role"] == "node" and state["phase"] == "serving" and not state["runs"]
                assert [node["here"] for node in state["nodes"]] == [True, False, False, False]
            async with http.get("/metrics") as answer:
                assert "wanswarm_nodes_serving 4.0" in await answer.text()
            async with http.get("/api/events") as events:
                first = await events.content.readuntil(b"\n\n")
                assert first.startswith(b"event: state\ndata: {")
            for path in ("/v1/models", "/generate", "/v1/receipts/x"):
                async with http.post(path, json={}) as answer:
                    assert answer.status == 404
            async with http.get("/", headers={"Origin": "https://evil.example"}) as answer:
                assert answer.status == 403
