"""Names that tests in several folders need."""

TINY = (
    "llama-tiny",
    "llama3-tiny",
    "yarn-tiny",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "gemma3-tiny",
    "smollm3-tiny",
    "phi-tiny",
    "glm-tiny",
)
