"""The load script: its visitors see what a browser would show, and nothing that is wrong passes for an answer."""

import asyncio
import json
from contextlib import asynccontextmanager

import click
import pytest
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.server import serve

from benchmarks import load
from benchmarks.load import Load, Targets
from benchmarks.visitor import Answer, VisitError, Visitor
from tests.conftest import finished

ADDRESS = "q=test%3A7&sigma2=1&m=2"


def element(kind, /, **fields):
    message = ForwardMsg()
    made = getattr(message.delta.new_element, kind)
    for name, value in fields.items():
        setattr(made, name, value)
    made.SetInParent()
    return message


def verdict(index):
    return element("html", body=f'<div class="ns-verdict">Test image {index} · ✓ right</div>')


def ranking(*numbers):
    cards = [{"alt": f"rank {i + 1}, Bag, training image {n}: 0.5 nats"} for i, n in enumerate(numbers)]
    return element("bidi_component", id="$$ID-0-ranking", json=json.dumps({"items": cards}))


def number():
    return element("text_input", id="$$ID-0-image_search", placeholder="0 – 99, or a file")


def kept(message, name):
    message.hash, message.metadata.cacheable = name, True
    return message


def coming_back(fragment):
    message = ForwardMsg()
    message.auto_rerun.fragment_id, message.auto_rerun.interval = fragment, 0.1
    return message


@asynccontextmanager
async def visiting(*runs):
    """Open a page of a server that answers each message of a visitor with the next of these runs of the page."""
    asked, left = [], iter(runs)

    async def answer(socket):
        async for frame in socket:
            asked.append(BackMsg.FromString(frame).rerun_script)
            run = next(left, None)
            if run is None:
                return
            whole = not asked[-1].fragment_id
            started = ForwardMsg(metadata={"run": {"fragment_ids": [] if whole else [asked[-1].fragment_id]}})
            started.new_session.config.max_cached_message_age = 2
            end = ForwardMsg(script_finished=ForwardMsg.FINISHED_SUCCESSFULLY if whole else 3)
            for message in (started, *run, end):
                await socket.send(message.SerializeToString())

    async with serve(answer, "localhost", 0) as server, Visitor(server.sockets[0].getsockname()[1]) as visitor:
        await visitor.drawn(5)
        yield visitor, asked


async def ask(*runs, timeout=5.0):
    async with visiting([number()], *runs) as (visitor, _):
        return await visitor.ask(7, timeout)


def test_an_answer_is_the_ranking_that_follows_the_image():
    answer = finished(ask([number(), ranking(9), verdict(7), ranking(3, 5)]))
    assert (answer.index, answer.ranking) == (7, (3, 5))
    assert answer.seconds > 0


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ([verdict(8), ranking(3)], "image 8 in place of 7"),
        ([verdict(7)], "drawn without an answer"),
        ([ranking(3), verdict(7)], "drawn without an answer"),
        ([verdict(7), ranking(3), element("alert", body="Too far.", format=Alert.ERROR)], "Too far"),
        ([verdict(7), ranking(3), element("exception", type="ValueError", message="sizes")], "ValueError: sizes"),
        ([ForwardMsg(ref_hash="unknown")], "does not have"),
    ],
)
def test_what_is_no_answer_is_an_error(run, sentence):
    with pytest.raises(VisitError, match=sentence):
        finished(ask(run))


def test_a_closed_connection_and_silence_are_errors():
    with pytest.raises(VisitError, match="closed the connection"):
        finished(ask())
    with pytest.raises(VisitError, match="Unanswered for 0 s"):
        finished(ask([verdict(7), coming_back("part")], timeout=0.01))


def test_all_controls_and_the_names_of_kept_messages_are_sent():
    async def visit():
        toggle = element("checkbox", id="$$ID-0-plain", default=True)
        page = [number(), toggle, kept(ranking(3, 5), "abc")]
        async with visiting(page, [number(), toggle, verdict(7), ForwardMsg(ref_hash="abc")]) as (visitor, asked):
            assert visitor.images == 100
            return await visitor.ask(7, 5), asked[-1]

    answer, sent = finished(visit())
    assert answer.ranking == (3, 5)
    assert list(sent.cached_message_hashes) == ["abc"]
    states = {state.id: state for state in sent.widget_states.widgets}
    assert states["$$ID-0-plain"].bool_value
    assert states["$$ID-0-image_search"].string_value == "7"


def test_a_part_that_redraws_itself_is_asked_for_until_the_answer_is_there():
    async def visit():
        runs = [number()], [number(), verdict(7), coming_back("part")], [ranking(3)]
        async with visiting(*runs) as (visitor, asked):
            return await visitor.ask(7, 5), asked[-1]

    answer, last = finished(visit())
    assert answer.ranking == (3,)
    assert (last.fragment_id, last.is_auto_rerun) == ("part", True)


def test_two_answers_for_one_image_are_an_error():
    answers = [Answer(7, ADDRESS, (3, 5), 0.1), Answer(7, ADDRESS, (3, 5), 0.1), Answer(7, ADDRESS, (5, 3), 0.1)]
    (error,) = load._wrong(None, answers, 0)
    assert "image 7 had two answers" in error


def test_an_answer_that_is_not_the_librarys_is_an_error(bundle_path):
    (error,) = load._wrong(bundle_path, [Answer(7, ADDRESS, (3, 5), 0.1)], 1)
    assert "image 7: " in error


def test_loads_are_bounded():
    with pytest.raises(click.ClickException, match="At most 200 visitors"):
        Load(distinct=150, heavy=51)
    with pytest.raises(click.ClickException, match="600 s"):
        Load(seconds=601)


def test_visitors_of_a_served_bundle_are_answered_and_targets_are_held(bundle_path):
    lines = []
    with pytest.raises(click.ClickException, match=r"distinct: 95 of 100 clicks .*, not 0 s"):
        finished(
            asyncio.to_thread(
                load.run,
                lines.append,
                bundle=bundle_path,
                load=Load(distinct=2, popular=0, warm=1, seconds=1, checked=3),
                targets=Targets(p95=0, errors=0, growth=1e4),
            )
        )
    clicks, errors = lines[2].split()[:2]
    assert int(clicks) >= 2
    assert int(errors) == 0
