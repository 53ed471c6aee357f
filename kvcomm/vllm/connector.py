"""vLLM's KV connector: thin glue between its hooks and kvcomm's two sides.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvcommConnector",
        "kv_connector_module_path": "kvcomm.vllm.connector", "kv_role": "kv_both"}'

Options are in `kv_connector_extra_config`: see `kvcomm.vllm.settings`. An exception in a hook turns
the connector off: it supplies nothing from then on and says why in the log and to clients, and the
server goes on. Where it does not know a server, it is off from the start.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
from vllm.platforms import current_platform

from kvcomm.version import VERSION
from kvcomm.vllm.catalogue import Catalogue
from kvcomm.vllm.facts import Facts
from kvcomm.vllm.orders import Orders
from kvcomm.vllm.refusals import of_layers, of_request, of_server
from kvcomm.vllm.ropes import rope_of
from kvcomm.vllm.settings import GB, Settings
from kvcomm.vllm.worker import Worker

log = init_logger("vllm.kvcomm")
FORCED = "kvcomm.vllm.forced:ForcedTokens"
# How requests end that have no answer.
BADLY = ("FINISHED_ABORTED", "FINISHED_IGNORED", "FINISHED_ERROR")

Hook = TypeVar("Hook", bound=Callable[..., Any])


def hook(otherwise: Callable[[], Any] = lambda: None) -> Callable[[Hook], Hook]:
    """Never raise: what goes wrong turns the connector off, and `otherwise` is returned."""

    def wrap(method: Hook) -> Hook:
        @functools.wraps(method)
        def guarded(self: KvcommConnector, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self.turn_off(f"{method.__name__} failed: {error!r}", error)
                return otherwise()

        return guarded  # type: ignore[return-value]

    return wrap


@dataclass
class Metadata(KVConnectorMetadata):
    """A step's orders, on their way to the workers."""

    orders: Orders = field(default_factory=Orders)


@dataclass
class WorkerMetadata(KVConnectorWorkerMetadata):
    """What workers say after a step, on its way back."""

    facts: Facts

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """That of two sets of ranks."""
        assert isinstance(other, WorkerMetadata)
        return WorkerMetadata(self.facts.merged(other.facts))


@dataclass
class Hello(KVConnectorHandshakeMetadata):
    """What a rank says at start: why it cannot do anything, what it is, and what it knows."""

    off: str
    about: dict[str, Any]
    facts: Facts


class KvcommConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module. One instance is in the scheduler's process, one in each worker's."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # vLLM configures its own loggers only.
        ours = logging.getLogger("kvcomm")
        ours.handlers, ours.propagate = logging.getLogger("vllm").handlers, False
        ours.setLevel(logging.INFO)
        self.off = ""
        self.catalogue: Catalogue | None = None
        self.worker: Worker | None = None
        self._ranks = vllm_config.parallel_config.tensor_parallel_size
        self._settings = Settings()
        self._requests: dict[str, Any] = {}
        self._pinned: Counter[int] = Counter()
        self._waiting: set[str] = set()  # those that got no blocks when they were looked at
        self._greeted = False
        self._untold = ""  # why it is off, if nobody knows yet
        self._unread = ""  # what was learned and cannot be read
        self._start(role)

    @hook()
    def _start(self, role: KVConnectorRole) -> None:
        config, cache = self._vllm_config, self._kv_cache_config
        off = of_server(config, cache, vllm.__version__)
        try:
            self._settings = Settings.of(config.kv_transfer_config.kv_connector_extra_config)
        except ValueError as error:
            off = "; ".join(filter(None, (off, str(error))))
        if role == KVConnectorRole.SCHEDULER:
            self.catalogue = self._catalogue()
        if off:
            self.turn_off(off)

    def _catalogue(self) -> Catalogue:
        config, cache, ranks = self._vllm_config, self._kv_cache_config, self._ranks
        device = 0
        if self._settings.device_share:
            device = current_platform.get_device_total_memory()
        groups = cache.kv_cache_groups
        page = sum(len(g.layer_names) * g.kv_cache_spec.page_size_bytes for g in groups)
        block = config.cache_config.block_size
        catalogue = Catalogue(
            block=block,
            token_bytes=-(-page * ranks // block),
            budget=self._settings.store_bytes(ranks, device),
            ranks=ranks,
            row_s=self._settings.row_s,
        )
        catalogue.said = {
            "vllm": vllm.__version__,
            "kvcomm": VERSION,
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "tokens": config.model_config.max_model_len,
            "block": block,
            "blocks": cache.num_blocks,
            "ranks": ranks,
            "token_bytes": catalogue.names.token_bytes,
            "forced": FORCED in map(str, config.model_config.logits_processors or ()),
            "max_logprobs": config.model_config.max_logprobs,
        }
        return catalogue

    def turn_off(self, why: str, error: BaseException | None = None) -> None:
        """Supply nothing from now on. Never raises."""
        if not self.off:
            self.off = self._untold = why
        log.error("kvcomm supplies nothing: %s", why, exc_info=error)
        if self.catalogue is not None:
            try:
                self.catalogue.disable(why)
                self._let_go()
            except Exception:
                log.exception("kvcomm could not let go of blocks")

    # --- the scheduler's side ---

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed on that somebody waits for."""
        return False

    @hook()
    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """What the workers say at start."""
        catalogue = self.catalogue
        assert catalogue is not None
        self._greeted = True
        hellos = [hello for hello in metadata.values() if isinstance(hello, Hello)]
        if len(hellos) != self._ranks:
            self.turn_off(f"{len(hellos)} of {self._ranks} workers are ready")
            return
        for rank, hello in sorted(metadata.items()):
            catalogue.heard(hello.facts)
            if hello.off and not self.off:
                self.turn_off(f"rank {rank}: {hello.off}")
        catalogue.said |= hellos[0].about

    @hook()
    def on_new_request(self, request: Any) -> None:
        """A request has come."""
        if self.catalogue is None or request.kv_transfer_params is None:
            return
        if not self._greeted and not self.off:
            self.turn_off("its workers said nothing at start")
        self._requests[request.request_id] = request
        self.catalogue.arrived(
            request.request_id,
            request.prompt_token_ids or (),
            request.cache_salt or "",
            request.kv_transfer_params,
            of_request(request),
        )
        self._settle()

    @hook(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens are supplied behind those that vLLM has."""
        self._waiting.add(request.request_id)
        if self.catalogue is None or request.request_id not in self._requests:
            return 0, False
        more = self.catalogue.match(
            request.request_id,
            request.num_tokens,
            num_computed_tokens,
            request.num_output_tokens,
        )
        return more, False

    @hook()
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """There are blocks for what is supplied."""
        self._waiting.discard(request.request_id)
        if self.catalogue is not None and request.request_id in self._requests:
            (ids,) = blocks.get_block_ids()
            self.catalogue.allocated(request.request_id, num_external_tokens, ids)

    @hook(Metadata)
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """The orders of a step."""
        catalogue, manager = self.catalogue, self._kv_cache_manager
        if catalogue is None or manager is None:
            return Metadata()
        for key, count in scheduler_output.num_scheduled_tokens.items():
            request = self._requests.get(key)
            if request is None or request.num_output_tokens:
                continue
            if request.num_computed_tokens + count >= request.num_prompt_tokens:
                (ids,) = manager.get_block_ids(key)
                catalogue.completed(key, ids, manager.block_pool.get_num_free_blocks())
                self._settle()
        if self._waiting and not scheduler_output.total_num_scheduled_tokens:
            catalogue.give_way()
        self._waiting.clear()
        orders = catalogue.take()
        self._settle()
        return Metadata(orders)

    @hook()
    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers say after a step."""
        found = connector_output.kv_connector_worker_meta
        if self.catalogue is None or not isinstance(found, WorkerMetadata):
            return
        self.catalogue.heard(found.facts)
        if self.catalogue.off and not self.off:
            self.turn_off(self.catalogue.off)
        self._settle()

    @hook(lambda: (False, None))
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """A request is over; returns what it is answered. Blocks are held by `_settle`."""
        if self.catalogue is None or self._requests.pop(request.request_id, None) is None:
            return False, None
        reply = self.catalogue.finished(
            request.request_id,
            list(request.all_token_ids),
            min(request.num_computed_tokens, request.num_tokens - 1),
            block_ids[0] if block_ids else (),
            request.status.name if request.status.name in BADLY else "",
        )
        self._settle()
        return False, None if reply is None else reply.to_json()

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The same, where there is one group of layers."""
        return self.request_finished_all_groups(request, (block_ids,))

    @hook(lambda: False)
    def reset_cache(self) -> bool | None:
        """Empty the store; rows end, and what was learned stays."""
        if self.catalogue is not None:
            self.catalogue.clear()
            self._settle()
        return True

    def _settle(self) -> None:
        """Hold and free blocks as the catalogue says. Its rows are ended when it is off."""
        catalogue, manager = self.catalogue, self._kv_cache_manager
        if catalogue is None or manager is None:
            return
        pool, rows = manager.block_pool, catalogue.rows
        pins, unpins, stale = rows.pins, rows.unpins, rows.stale
        rows.pins, rows.unpins, rows.stale = [], [], []
        pool.touch([pool.blocks[block] for block in pins])
        self._pinned.update(pins)
        if stale:
            pool.evict_blocks(set(stale))
        # The last blocks of a prompt are the first to be used again.
        pool.free_blocks([pool.blocks[block] for block in reversed(unpins)])
        self._pinned.subtract(unpins)
        self._pinned += Counter()

    def _let_go(self) -> None:
        """Free all blocks that are held, whatever the catalogue says."""
        assert self.catalogue is not None
        rows, held = self.catalogue.rows, list(self._pinned.elements())
        rows.pins, rows.unpins, rows.stale = [], [], []
        self._pinned.clear()
        if self._kv_cache_manager is not None:
            pool = self._kv_cache_manager.block_pool
            pool.free_blocks([pool.blocks[block] for block in held])

    # --- the worker's side ---

    @hook()
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The model is there, and its cache."""
        if self.off:
            return
        from vllm.distributed.parallel_state import get_tp_group

        rank = get_tp_group().rank_in_group
        context = self._vllm_config.compilation_config.static_forward_context
        layers = [context[name] for name in kv_caches]
        if why := of_layers(layers):
            self.turn_off(why)
            return
        state, unread = self._settings.kept(self._vllm_config.model_config, self._ranks, rank)
        try:
            self.worker = Worker(
                rank,
                layers,
                self._vllm_config.cache_config.block_size,
                rope_of(_ROPE_DICT.values(), layers[0].impl.head_size),
                on_device=bool(self._settings.device_share),
                models=self._settings.models_gb * GB / self._ranks,
                state=state,
            )
        except ValueError as error:
            self.turn_off(str(error))
            return
        self._unread = "; ".join(filter(None, (unread, self.worker.learner.refused)))
        if self._unread:
            log.warning("kvcomm: %s", self._unread)

    @hook(lambda: Hello("it failed at start", {}, Facts()))
    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """What this rank says at start."""
        if self.worker is None:
            return Hello(self.off or "it has no cache", {}, Facts())
        layers, heads, dim = self.worker.paged.shape
        about: dict[str, Any] = {"layers": layers, "heads": heads, "head_dim": dim}
        log.info("kvcomm %s supplies KV to %d layers, %d heads of %d", VERSION, *about.values())
        about |= {"state": self._settings.state, "unread": self._unread}
        return Hello(self.off, about, self.worker.facts())

    @hook()
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """The beginning of a step: what is read and filled before the model runs."""
        if self.worker is None:
            return
        orders, done = self._orders(), False
        try:
            if not self.off:
                self.worker.begin(orders)
                done = True
        finally:
            if not done:
                for load in orders.loads:
                    self.worker.give_up(load)

    @hook()
    def wait_for_save(self) -> None:
        """Its end."""
        if self.worker is not None and not self.off:
            self.worker.end(self._orders())

    def _orders(self) -> Orders:
        found = self._get_connector_metadata()
        return found.orders if isinstance(found, Metadata) else Orders()

    @hook(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that could not be filled: their requests end with an error."""
        return self.worker.failed() if self.worker is not None else set()

    @hook()
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What this rank has to say after a step."""
        if self.worker is None:
            return None
        facts = self.worker.facts()
        if self._untold:
            facts.failed[self.worker.rank], self._untold = self._untold, ""
        return WorkerMetadata(facts) if facts else None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are over when a step begins."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Saves come when it has ended."""

    @hook()
    def shutdown(self) -> None:
        """Keep what was learned."""
        if self.worker is not None:
            self.worker.learner.close()
