"""Runs a program against a gateway of its own: `python -m tests.clients.gateway PROGRAM [ARGUMENT...]`.

Two nodes of a tiny random model whose chat template takes tools, as processes, a requester and a gateway in this one.
URL of the API is the program's last argument. Ends as the program does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from receipts.check.verify import verify
from swarm.base.config import MemberConfig
from swarm.cli.serve import KEEP_S
from swarm.client.client import Requester, RequesterConfig
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.swarm.serve.tiny import tiny_model, tiny_tokenizer

CONTEXT = 16_384
TEMPLATE = (
    "{%- if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{%- for call in message.get('tool_calls', []) %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


async def against(program: list[str]) -> int:
    """Its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        model, state = Path(folder) / "tiny", Path(folder) / "requester"
        whole, tokenizer = tiny_model(258), tiny_tokenizer(TEMPLATE)
        whole.config.max_position_embeddings = CONTEXT
        whole.config.eos_token_id = whole.generation_config.eos_token_id = tokenizer.eos_token_id
        whole.save_pretrained(model)
        tokenizer.save_pretrained(model)
        options = ("--cpu", "--threads", "1", "--dtype", "float32")
        swarm = LocalSwarm(Path(folder) / "swarm", model=str(model), arguments=options)
        async with local_ring(swarm, [(0, 1), (1, 2)]) as ring:
            member = MemberConfig(state, state / "models", ring.invite, lan=False)
            async with (
                await Requester.connect(RequesterConfig(member, draft="suffix", keep_s=KEEP_S)) as requester,
                gateway(requester, GatewayConfig(), lambda data: verify(data).as_json(), "127.0.0.1", 0) as (
                    host,
                    port,
                ),
            ):
                running = await asyncio.create_subprocess_exec(*program, f"http://{host}:{port}/v1")
                return await running.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(against(sys.argv[1:])))
