"""Names that tests in several folders need."""

TINY = ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny")
