"""The glue to vLLM's hooks, with stand-ins for what it uses of vLLM: nothing ever raises."""

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvcomm.vllm.protocol import Piece, Publish, Reply, Request, salt_of
from tests.vllm.standins import HEADS, SLOTS, layer
from tests.vllm.test_refusals import server as configured
from tests.vllm.test_refusals import spec
from tests.vllm.test_ropes import RotaryEmbedding

ROW = "f" * 32
TEXT = list(range(100, 120))


class Base:
    """As `KVConnectorBase_V1`."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self._vllm_config, self._role = vllm_config, role
        self._kv_cache_config = kv_cache_config
        self._kv_cache_manager: Any = None
        self._connector_metadata: Any = None

    def _get_connector_metadata(self) -> Any:
        return self._connector_metadata


class Pool:
    """As vLLM's block pool: users of blocks."""

    def __init__(self) -> None:
        self.blocks = list(range(50))
        self.users = dict.fromkeys(self.blocks, 0)
        self.evicted: set[int] = set()

    def touch(self, blocks: list[int]) -> None:
        for block in blocks:
            self.users[block] += 1

    def free_blocks(self, blocks: list[int]) -> None:
        for block in blocks:
            self.users[block] -= 1
            assert self.users[block] >= 0

    def evict_blocks(self, blocks: set[int]) -> None:
        self.evicted |= blocks

    def get_num_free_blocks(self) -> int:
        return sum(not count for count in self.users.values())


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `kvcomm.vllm.connector`, without vLLM."""

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", __version__="0.32.0")
    for name in ("distributed", "distributed.kv_transfer", "distributed.kv_transfer.kv_connector",
                 "distributed.kv_transfer.kv_connector.v1", "model_executor",
                 "model_executor.layers"):  # fmt: skip
        module(f"vllm.{name}")
    module(
        "vllm.distributed.kv_transfer.kv_connector.v1.base",
        KVConnectorBase_V1=Base,
        KVConnectorHandshakeMetadata=object,
        KVConnectorMetadata=object,
        KVConnectorRole=SimpleNamespace(SCHEDULER=0, WORKER=1),
        KVConnectorWorkerMetadata=object,
        SupportsHMA=object,
    )
    module("vllm.logger", init_logger=lambda name: logging.getLogger(name))
    rope = RotaryEmbedding(rotary=4)
    rope.head_size = 6
    module("vllm.model_executor.layers.rotary_embedding", _ROPE_DICT={0: rope})
    module("vllm.platforms", current_platform=None)
    group = SimpleNamespace(rank_in_group=0)
    module("vllm.distributed.parallel_state", get_tp_group=lambda: group)
    monkeypatch.delitem(sys.modules, "kvcomm.vllm.connector", raising=False)
    ours = logging.getLogger("kvcomm")
    before = ours.handlers, ours.propagate, ours.level
    yield importlib.import_module("kvcomm.vllm.connector")
    ours.handlers, ours.propagate, ours.level = before
    sys.modules.pop("kvcomm.vllm.connector", None)


class Server:
    """Both sides of a connector, and the scheduler between them."""

    def __init__(self, module: Any, **changes: Any) -> None:
        config, cache = configured(**changes)
        config.parallel_config.tensor_parallel_size = 1
        config.cache_config.block_size = SLOTS
        config.model_config.__dict__.update(
            model="m", dtype="float32", max_model_len=99, logits_processors=None, max_logprobs=5
        )
        cache.num_blocks = 50
        for group in cache.kv_cache_groups:
            group.layer_names = ["a", "b"]
            group.kv_cache_spec.page_size_bytes = 2 * SLOTS * HEADS * 6 * 4
        layers = {"a": layer(blocks=50), "b": layer(blocks=50)}
        config.compilation_config = SimpleNamespace(static_forward_context=layers)
        self.caches = {name: one.kv_cache for name, one in layers.items()}
        self.pool = Pool()
        self.tables: dict[str, list[int]] = {}
        self.scheduler = module.KvcommConnector(config, 0, cache)
        self.scheduler._kv_cache_manager = SimpleNamespace(
            block_pool=self.pool, get_block_ids=lambda key: (self.tables[key],)
        )
        self.worker = module.KvcommConnector(config, 1, cache)
        self.requests = 0
        self.next = 1

    def hello(self) -> None:
        self.worker.register_kv_caches(self.caches)
        self.scheduler.set_xfer_handshake_metadata({0: self.worker.get_handshake_metadata()})

    def request(self, tokens: list[int], salt: str, ask: Request | None) -> Any:
        self.requests += 1
        return SimpleNamespace(
            request_id=f"cmpl-{self.requests}",
            prompt_token_ids=tokens,
            all_token_ids=[*tokens, 7],
            num_tokens=len(tokens),
            num_prompt_tokens=len(tokens),
            num_computed_tokens=0,
            num_output_tokens=0,
            cache_salt=salt,
            kv_transfer_params=None if ask is None else ask.to_json(),
            sampling_params=SimpleNamespace(prompt_logprobs=None),
            lora_request=None,
            mm_features=[],
            prompt_embeds=None,
            status=SimpleNamespace(name="FINISHED_LENGTH_CAPPED"),
        )

    def run(self, tokens: list[int], salt: str = "", ask: Request | None = None) -> Any:
        """All of a request; returns its reply, and the blocks that failed."""
        request = self.request(tokens, salt, ask)
        scheduler = self.scheduler
        scheduler.on_new_request(request)
        more, waits = scheduler.get_num_new_matched_tokens(request, 0)
        assert not waits
        count = -(-(len(tokens) + 1) // SLOTS)
        ids = list(range(self.next, self.next + count))
        self.next += count
        self.pool.touch(ids)
        self.tables[request.request_id] = ids
        blocks = SimpleNamespace(get_block_ids=lambda: (ids,))
        scheduler.update_state_after_alloc(request, blocks, more)
        request.num_computed_tokens = more
        failed = self.step({request.request_id: len(tokens) - more})
        request.num_computed_tokens = len(tokens)
        request.num_tokens = len(tokens) + 1
        delayed, params = scheduler.request_finished_all_groups(request, (ids,))
        assert delayed is False
        self.pool.free_blocks(ids)
        self.step({})
        return Reply.from_json(params), failed

    def step(self, scheduled: dict[str, int]) -> set[int]:
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled, total_num_scheduled_tokens=sum(scheduled.values())
        )
        self.worker._connector_metadata = self.scheduler.build_connector_meta(output)
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        failed: set[int] = self.worker.get_block_ids_with_load_errors()
        said = self.worker.build_connector_worker_meta()
        self.scheduler.update_connector_output(SimpleNamespace(kv_connector_worker_meta=said))
        return failed

    def held(self) -> int:
        return sum(self.pool.users.values())


def published(server: Server, name: str = "0" * 32) -> str:
    reply, _ = server.run(TEXT, "", Request(publish=(Publish(name, 0, len(TEXT)),)))
    assert reply.published == (name,)
    return name


def filled(name: str, **more: Any) -> Request:
    return Request(row=ROW, pieces=(Piece(0, 20, name),), **more)


def test_a_prompt_goes_all_the_way(connector: Any) -> None:
    server = Server(connector)
    server.hello()
    reply, _ = server.run([1], "", Request(query=True))
    assert reply.refused == ""
    assert reply.about["heads"] == HEADS
    assert reply.about["disabled"] == ""
    name = published(server)
    reply, failed = server.run(TEXT, salt_of(ROW), filled(name, keep=True))
    assert reply.supplied == (0, 19)
    assert not failed
    assert server.held() == 20 // SLOTS
    server.run([1], "", Request(ends=(ROW,)))
    assert server.held() == 0
    assert server.run(TEXT)[0] is None


def test_a_hook_that_fails_turns_it_off(connector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("arrived", "match", "allocated", "completed", "take", "finished", "heard"):
        server = Server(connector)
        server.hello()
        name = published(server)
        other = "a" * 32
        server.run(TEXT, salt_of(other), Request(row=other, keep=True))
        assert server.held()

        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("on purpose")

        with monkeypatch.context() as patch:
            patch.setattr(server.scheduler.catalogue, method, fail)
            if method == "heard":
                server.step({})
                connector.WorkerMetadata.facts = None
                server.scheduler.update_connector_output(
                    SimpleNamespace(kv_connector_worker_meta=connector.WorkerMetadata(None))
                )
            else:
                server.run(TEXT, salt_of(ROW), filled(name))
        assert "on purpose" in server.scheduler.off, method
        assert server.held() == 0, method
        reply, _ = server.run(TEXT, salt_of("b" * 32), Request(row="b" * 32, keep=True))
        assert "on purpose" in reply.refused
        assert reply.supplied == (0, 0)
        assert server.held() == 0


def test_a_worker_that_fails_says_so_and_has_its_loads_fail(connector: Any) -> None:
    server = Server(connector)
    server.hello()
    name = published(server)

    def fail(*args: Any) -> None:
        raise RuntimeError("on purpose")

    server.worker.worker.begin = fail
    _, failed = server.run(TEXT, salt_of(ROW), filled(name))
    assert len(failed) == 3
    reply, failed = server.run(TEXT, salt_of(ROW), filled(name))
    assert not failed
    assert reply.refused.startswith("rank 0: start_load_kv failed")
    assert server.held() == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_transfer_config__kv_load_failure_policy": "recompute"}, "recompute"),
        ({"kv_transfer_config__kv_connector_extra_config": {"store_gb": -1}}, "store_gb"),
        ({"groups": [spec(sliding_window=9)]}, "sliding_window"),
    ],
)
def test_a_server_that_is_not_known_is_let_alone(
    connector: Any, changes: dict[str, Any], why: str
) -> None:
    server = Server(connector, **changes)
    server.hello()
    reply, _ = server.run(TEXT, "", Request(query=True, publish=(Publish("0" * 32, 0, 9),)))
    assert why in reply.refused
    assert why in reply.about["disabled"]
    assert reply.published == ()
    assert server.held() == 0


def test_workers_that_say_nothing_are_not_relied_on(connector: Any) -> None:
    server = Server(connector)
    reply, _ = server.run(TEXT, "", Request(query=True))
    assert "said nothing" in reply.refused
    server = Server(connector)
    server.scheduler.set_xfer_handshake_metadata({})
    assert "0 of 1 workers" in server.run(TEXT, "", Request(query=True))[0].refused


def test_a_cache_that_cannot_be_read_turns_it_off(connector: Any) -> None:
    server = Server(connector)
    layers = server.worker._vllm_config.compilation_config.static_forward_context
    layers["b"].kv_cache = layers["b"].kv_cache.bfloat16()
    server.hello()
    assert "alike" in server.run(TEXT, "", Request(query=True))[0].refused


def test_the_store_can_be_emptied(connector: Any) -> None:
    server = Server(connector)
    server.hello()
    name = published(server)
    server.run(TEXT, salt_of(ROW), filled(name, keep=True))
    assert server.scheduler.reset_cache() is True
    assert server.held() == 0
    reply, _ = server.run(TEXT, salt_of(ROW), filled(name))
    assert reply.missing == (name,)
