"""Every answer that was recorded from a real server, given to the client: what comes of it, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from asking import ask
from recordings import body, events, load, names, reply, stream_reply
from replay_server import ReplayServer

from rag_tuned_memory import errors
from rag_tuned_memory.errors import (
    BackendError,
    BackendOverloaded,
    BackendUnavailable,
    InvalidInput,
    PromptTooLong,
    RagTunedMemoryError,
)
from rag_tuned_memory.serving.base import Generation
from rag_tuned_memory.serving.tgi import TgiBackend
from rag_tuned_memory.serving.tgi.scoring import completion_logprobs

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]

REFUSED: dict[type[RagTunedMemoryError], tuple[str, str]] = {
    InvalidInput: (
        "the server refuses the request",
        """
        bad_best_of_3 bad_best_of_no_sampling bad_best_of_seed bad_details_string bad_empty_body bad_empty_inputs
        bad_frequency_penalty_3 bad_inputs_list bad_inputs_null bad_invalid_utf8 bad_json_array bad_json_syntax
        bad_malformed_json bad_max_new_tokens_0 bad_max_new_tokens_float bad_max_new_tokens_neg
        bad_max_new_tokens_string bad_missing_inputs bad_repetition_penalty_0 bad_seed_neg bad_stop_5 bad_stop_string
        bad_temperature_0 bad_temperature_neg bad_top_k_0 bad_top_n_tokens_6 bad_top_p_0 bad_top_p_1 bad_top_p_2
        bad_truncate_0 bad_truncate_big bad_typical_p_1 gen_adapter_int gen_adapter_list gen_grammar_bad_schema
        gen_grammar_bad_type gen_grammar_json_string_bad gen_grammar_no_properties stream_bad_best_of
        stream_bad_decoder_input stream_bad_empty stream_bad_malformed_json stream_bad_temperature_0
        """,
    ),
    PromptTooLong: (
        "Shorten the prompt",
        """
        bad_inputs_over_max_input bad_inputs_too_long bad_payload_413 bad_too_many_new_tokens_1000
        bad_too_many_new_tokens_100000 stream_bad_too_long
        """,
    ),
    BackendOverloaded: (
        "overloaded",
        """
        overload_chat overload_completions overload_generate overload_invalid overload_root overload_root_stream
        overload_stream
        """,
    ),
    BackendUnavailable: (
        "the server failed while it generated|was cut",
        """
        bad_shape_bystander ranks_ad2 shardkill_chat shardkill_generate shardkill_stream sigterm_timeout_generate
        sigterm_timeout_stream
        """,
    ),
    BackendError: (
        "the API key is missing or wrong|answers 40.: no text-gen|failed|not speak text-generation-inference",
        """
        auth_missing auth_missing_chat auth_missing_malformed auth_missing_root auth_missing_stream
        auth_missing_tokenize auth_missing_unknown_path auth_no_bearer auth_wrong bad_no_content_type
        bad_regex_during_stream bad_shape_adapter bad_text_content_type gen_grammar_bad_regex generate_get_405
        overload_chat_stream ranks_a_r16 ranks_ad1 shardkill_chat_stream shardkill_completions_stream
        sigterm_timeout_chat_stream stall_chat_stream stream_grammar_bad_regex t5model_chat_no_template
        t5model_chat_stream_no_template t5model_chat_tokenize_no_template unknown_path unknown_path_post
        """,
    ),
}
EXPECTED = {name: (kind, message) for kind, (message, cases) in REFUSED.items() for name in cases.split()}
STREAMED = [name for name in names() if name not in EXPECTED and '"index":1' in load(name)["response"]["body"]]
WHOLE = [name for name in names() if name not in EXPECTED and name not in STREAMED]


def test_every_error_has_an_outcome() -> None:
    assert set(EXPECTED) <= set(names()), "the table names recordings only"
    succeeded = [load(name)["response"] for name in [*STREAMED, *WHOLE]]
    assert all(answer["status"] == 200 and '"error"' not in answer["body"] for answer in succeeded)


@pytest.mark.parametrize("case", EXPECTED)
async def test_errors(case: str, serve: Serve, connect: Connect) -> None:
    kind, message = EXPECTED[case]
    server = serve(reply(case))
    backend = connect(server, max_tries=1)
    for asked in (backend.generate([ask("q")]), backend.generate_one(ask("q")), _read(backend)):
        with pytest.raises(RagTunedMemoryError, match=message) as caught:
            await asked
        assert type(caught.value) is kind
        assert server.url in str(caught.value), "an error names the server"
    assert len(server.generated) == 3


@pytest.mark.parametrize("case", [case for case in EXPECTED if "data: " not in str(load(case).get("response"))])
async def test_errors_when_scoring(case: str, serve: Serve, connect: Connect) -> None:
    kind, message = EXPECTED[case]
    backend = connect(serve(reply(case)), max_tries=1)
    with pytest.raises(RagTunedMemoryError, match=message) as caught:
        await backend.score(ask("q"), ["answer"])
    assert type(caught.value) is kind


@pytest.mark.parametrize("case", STREAMED)
async def test_streams(case: str, serve: Serve, connect: Connect) -> None:
    recorded = [event["token"] for event in events(case)]
    backend = connect(serve(reply(case)))
    text, done = await _read(backend)
    assert done.text == text == "".join(one["text"] for one in recorded if not one["special"])
    assert [(one.id, one.logprob) for one in done.tokens] == [(one["id"], one["logprob"]) for one in recorded]
    details = events(case)[-1]["details"]
    if details:
        assert done.prompt_tokens == details["input_length"]
        assert done.finish_reason == ("length" if details["finish_reason"] == "length" else "stop")
    assert math.isnan(done.entropy), "TGI does not tell it"


@pytest.mark.parametrize("case", WHOLE)
async def test_a_whole_answer_where_a_stream_was_asked_for(case: str, serve: Serve, connect: Connect) -> None:
    with pytest.raises(BackendError, match="a stream was asked for"):
        await connect(serve(reply(case))).generate([ask("q")])


@pytest.mark.parametrize("case", [case for case in WHOLE if '"details":' in load(case)["response"]["body"]])
async def test_recorded_tokens_as_a_stream(case: str, serve: Serve, connect: Connect) -> None:
    """The tokens of answers that were recorded whole: NaN, other alphabets, end tokens, grammars, stop strings."""
    details, generated = body(case)["details"], body(case)["generated_text"]
    server = serve(stream_reply(details["tokens"], reason=details["finish_reason"], generated_text=generated))
    (done,) = await connect(server).generate([ask("q", max_new_tokens=64)])
    assert done.text == "".join(one["text"] for one in details["tokens"] if not one["special"])
    assert done.text == generated.removeprefix("The capital of France is") or not generated
    assert [one.id for one in done.tokens] == [one["id"] for one in details["tokens"]]
    for ours, theirs in zip(done.tokens, details["tokens"], strict=True):
        assert math.isnan(ours.logprob) if theirs["logprob"] is None else ours.logprob == theirs["logprob"]
        assert ours.text == ("" if theirs["special"] else theirs["text"])
    assert done.finish_reason == ("length" if details["finish_reason"] == "length" else "stop")
    assert 0 <= done.confidence <= 1


async def test_a_recorded_end(serve: Serve, connect: Connect) -> None:
    recorded = body("gen_eos")["details"]
    (done,) = await connect(serve(stream_reply(recorded["tokens"], reason="eos_token"))).generate([ask("q")])
    assert (done.tokens[-1].text, recorded["tokens"][-1]["text"]) == ("", "<|im_end|>")
    assert done.finish_reason == "stop"


async def test_a_character_cut_in_two(serve: Serve, connect: Connect) -> None:
    assert body("gen_unicode")["generated_text"] == ""
    (done,) = await connect(serve(reply("stream_unicode"))).generate([ask("q", max_new_tokens=12)])
    assert (done.text, done.finish_reason) == ("、アプリエル", "length")


async def test_recorded_logprobs_of_a_prompt(serve: Serve, connect: Connect) -> None:
    backend = connect(serve(reply("reqlogprobs_gen_decoder_input")))
    answer = await backend._client.complete("The capital of France is", {}, 5)
    assert completion_logprobs(answer, [504, 3575, 282, 4649, 314], 3, "x") == (-2.40625, -0.47070312)
    with pytest.raises(InvalidInput, match="other tokens"):
        completion_logprobs(answer, [504, 3575, 282, 4649, 315], 3, "x")


async def test_scoring_where_the_server_tells_nothing(serve: Serve, connect: Connect) -> None:
    with pytest.raises(BackendError, match="REQUEST_LOGPROBS=1"):
        await connect(serve(reply("gen_details_decoder_input"))).score(ask("q"), ["answer"])


def test_the_tree_of_errors() -> None:
    assert issubclass(errors.BackendOverloaded, errors.BackendUnavailable)


async def _read(backend: TgiBackend) -> tuple[str, Generation]:
    text, done = "", None
    async for chunk in backend.stream(ask("q")):
        text, done = text + chunk.text, chunk.generation
    assert done is not None
    return text, done
