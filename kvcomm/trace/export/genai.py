"""Names of span attributes: OpenTelemetry's for generative AI, and our own beside them.

The former are a convention in development: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
WORKFLOW = "gen_ai.workflow.name"
AGENT = "gen_ai.agent.name"
TOOL = "gen_ai.tool.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_SEED = "gen_ai.request.seed"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
# Part of the input tokens: those whose KV was not computed.
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# Values of OPERATION.
RUN = "invoke_workflow"
CHAT = "chat"
EXECUTE_TOOL = "execute_tool"

SERVICE = "service.name"
SERVICE_VERSION = "service.version"
ERROR_TYPE = "error.type"
OWN = "kvcomm."


def own(name: str) -> str:
    """The name of an attribute that only kvcomm has."""
    return OWN + name
