"""Logs of LiteLLM: its standard payload, as S3 and other loggers store it, and its spend logs.

Sources: docs.litellm.ai/docs/proxy/logging_spec (`StandardLoggingPayload`, times in seconds) and
the table `LiteLLM_SpendLogs` of LiteLLM's schema.prisma; texts are in the latter only with
`store_prompts_in_spend_logs`.
"""

from retort.data.formats._chat import unquoted
from retort.data.sources.traffic.call import (
    EMBEDDINGS,
    FAILED,
    Call,
    LeftOut,
    asked,
    replied,
    scalars,
    seconds_of,
)
from retort.records import JsonObject

CHATS = {
    *("completion", "acompletion", "text_completion", "atext_completion"),
    *("responses", "aresponses", "anthropic_messages", "generate_content", "agenerate_content"),
}


def is_call(row: JsonObject) -> bool:
    """Whether a row is one that LiteLLM logs."""
    return "call_type" in row and "startTime" in row


def of_call(row: JsonObject) -> Call | LeftOut:
    """Returns the call of a row, or why it is none."""
    try:
        return _call(row)
    except LeftOut as reason:
        return reason


def _call(row: JsonObject) -> Call:
    kind = str(row["call_type"] or "")
    if "embedding" in kind:
        raise LeftOut(EMBEDDINGS)
    if kind and kind not in CHATS:
        raise LeftOut("a call of another kind than a chat")
    if row.get("status") == "failure" or row.get("error_str"):
        raise LeftOut(FAILED)
    body = unquoted(row.get("proxy_server_request"))
    body = body if isinstance(body, dict) else {}
    turns, tools = asked(unquoted(row.get("messages")) or body)
    parameters = unquoted(row.get("model_parameters"))
    named = parameters.get("tools") if isinstance(parameters, dict) else None
    metadata = unquoted(row.get("metadata"))
    metadata = metadata if isinstance(metadata, dict) else {}
    own = scalars(metadata.get("requester_metadata"))
    tags = unquoted(row.get("request_tags"))
    session = row.get("session_id") or own.pop("session_id", None)
    return Call(
        turns,
        replied(row.get("response")),
        conversation=session or row.get("trace_id"),
        seconds=seconds_of(row["startTime"]),
        model=row.get("model_group") or row.get("model"),
        service=metadata.get("user_api_key_team_alias") or metadata.get("user_api_key_alias"),
        request=row.get("id") or row.get("request_id"),
        tools=named or tools or body.get("tools"),
        more=own | ({"tags": tags} if isinstance(tags, list) and tags else {}),
    )
