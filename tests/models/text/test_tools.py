"""Tools, calls and results in prompts, and which messages are refused."""

import json

import pytest

from common.errors import InvalidInput
from models.text.messages import check_messages
from models.text.prompt import PromptBuilder
from models.text.tools import call_text

TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Łódź"}'}}
ASKED = {"role": "user", "content": "Weather?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {
    "role": "tool",
    "tool_call_id": "c1",
    "name": "weather",
    "content": [{"type": "text", "text": "rain"}],
}
QWEN = """{%- if tools %}<S>{{ messages[0].content }}{%- for tool in tools %}
{{ tool | tojson }}{%- endfor %}</S>{%- else %}<S>{{ messages[0].content }}</S>{%- endif %}
{%- for message in messages %}{%- if message.role == "assistant" %}<A>{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{%- endfor %}</A>
{%- elif message.role == "tool" %}<R>{{ message.content }}</R>
{%- elif message.role == "user" %}<U>{{ message.content }}</U>{%- endif %}{%- endfor %}"""


def test_a_conversation_with_calls_is_told_to_a_model_without_a_template_for_them(loaded, builder):
    text = loaded.tokenizer.decode(builder.plain([ASKED, CALLED, RESULT, RESULT], [TOOL]))
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    assert f"<|im_start|>assistant\n{call_text(CALL)}<|im_end|>" in text
    assert call_text(CALL) == '<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
    response = "<tool_response>\nrain\n</tool_response>"
    assert f"<|im_start|>user\n{response}\n{response}<|im_end|>" in text
    assert "<tools>" not in loaded.tokenizer.decode(builder.plain([ASKED, CALLED, RESULT]))
    behind = loaded.tokenizer.decode(builder.tail([ASKED, CALLED, RESULT, RESULT], [TOOL]))
    assert behind.split("# Tools")[1] == text.split("# Tools")[1]


def test_a_template_of_its_own_for_tools_is_used(loaded, monkeypatch):
    monkeypatch.setattr(loaded.tokenizer, "chat_template", QWEN)
    text = loaded.tokenizer.decode(PromptBuilder(loaded.tokenizer).plain([ASKED, CALLED, RESULT], [TOOL]))
    assert text.startswith("<S>You are a helpful assistant." + json.dumps(TOOL) + "</S><U>Weather?</U><A>")
    assert call_text(CALL) in text and "<R>rain</R>" in text
    monkeypatch.setattr(loaded.tokenizer, "chat_template", QWEN.replace("<tool_call>", "[CALL]"))
    assert "# Tools" in loaded.tokenizer.decode(PromptBuilder(loaded.tokenizer).plain([ASKED], [TOOL]))


def test_messages_have_one_normal_form():
    said = [
        {"role": "developer", "content": "Be brief."},
        ASKED,
        CALLED,
        {**CALLED, "content": ""},
        {"role": "assistant", "tool_calls": [CALL]},
        {**CALLED, "content": [{"type": "text", "text": "So"}]},
        RESULT,
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "tool_calls": None},
    ]
    checked = check_messages(said)
    assert checked == check_messages(checked)
    assert checked[0]["role"] == "system"
    assert [m["content"] for m in checked] == [
        "Be brief.",
        "Weather?",
        "",
        "",
        "",
        "So",
        "rain",
        "No.",
        "No.",
    ]
    assert all(m["tool_calls"] == [CALL] for m in checked[2:6]) and checked[6]["tool_call_id"] == "c1"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "deprecated"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "use tool_calls"),
        ({"role": "robot", "content": "x"}, "one of system, developer, user, assistant, tool"),
        ({"role": "user", "content": None}, "content must be a string"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content.0. is of type 'image_url'"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "'refusal'"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "only an assistant"),
        ({"role": "tool", "content": "x"}, "tool_call_id = None"),
        ({"role": "tool", "content": "x", "tool_call_id": "c2"}, "'c2' is no id"),
        ({**CALLED, "tool_calls": [{**CALL, "type": "custom"}]}, r"tool_calls.0. is no call of a function"),
        ({**CALLED, "tool_calls": [{**CALL, "id": None}]}, "id = None"),
        ({**CALLED, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]}, "of an object"),
        ({**CALLED, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]}, "surrogate"),
    ],
)  # fmt: skip
def test_bad_messages_are_refused_by_name(bad, says):
    with pytest.raises(InvalidInput, match=rf"messages\[2\].*{says}") as caught:
        check_messages([ASKED, CALLED, bad])
    assert caught.value.param == "messages"
