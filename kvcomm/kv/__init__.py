"""KV: position-free tensors, rotary embeddings, the store and the prefix cache."""

from kvcomm.kv.prefix import PrefixCache
from kvcomm.kv.rope import Rope
from kvcomm.kv.store import Store, content_key
from kvcomm.kv.tensor import KV, Slab

__all__ = ["KV", "PrefixCache", "Rope", "Slab", "Store", "content_key"]
