"""KV: position-free tensors, rotary embeddings, files and the prefix cache."""

from kvcomm.kv.files import content_key
from kvcomm.kv.prefix import PrefixCache
from kvcomm.kv.rope import Rope
from kvcomm.kv.tensor import KV, KVBuffer

__all__ = ["KV", "KVBuffer", "PrefixCache", "Rope", "content_key"]
