"""Whatever a method says and when: the loop counts it, keeps its promises, and can be resumed."""

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from scripted import EPOCH_STEPS, EPOCHS, run
from toy import Memory, same, snapshot

from advprune.events import Event
from advprune.masking import maskings

STEPS = EPOCHS * EPOCH_STEPS
Script = dict[int, Event]
# All that a method can say at once, at any steps.
events = st.integers(1, sum(kind.value for kind in Event)).map(Event)
scripts = st.dictionaries(st.integers(1, STEPS), events)
few = settings(max_examples=10, deadline=None)


def last_step(script: Script) -> int:
    """The end of the epoch in which the first stop is, or of the search."""
    first = min((step for step, event in script.items() if Event.STOP in event), default=STEPS)
    return -(-first // EPOCH_STEPS) * EPOCH_STEPS


@few
@given(scripts, st.integers(1, STEPS), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_search_resumes_in_the_same_bits(
    script: Script, step: int, rounds: int, adam: bool, select: bool
) -> None:
    options = {"rounds": rounds, "adam": adam, "select": select}
    net, trained, memory = run(script, **options)
    step = min(step, last_step(script))
    at, tensors, history = memory.saves[step]
    resumed, ended, after = run(script, Memory((at, load(save(tensors)), history), 1), **options)
    assert same(snapshot(resumed), snapshot(net))
    assert same(ended.state, trained.state)
    assert ended.history == trained.history
    # And on the way: so a search that dies again resumes just as well.
    assert after.saves.keys() == {later for later in memory.saves if later > step}
    for later, (_, expected, rows) in memory.saves.items():
        if later > step:
            assert same(after.saves[later][1], expected)
            assert after.saves[later][2] == rows


@few
@given(scripts)
def test_checkpoints_follow_epochs_and_all_that_happened_but_rewiring(script: Script) -> None:
    _, trained, memory = run(script, Memory())
    end = last_step(script)
    happened = {step for step, event in script.items() if event & ~Event.REWIRE}
    expected = {step for step in range(1, end + 1) if step % EPOCH_STEPS == 0 or step in happened}
    assert memory.saves.keys() == expected
    for epoch, row in enumerate(trained.history):
        steps = range(epoch * EPOCH_STEPS + 1, (epoch + 1) * EPOCH_STEPS + 1)
        said = [script[step] for step in steps if step in script]
        for kind in Event:
            assert row.get(str(kind.name).lower(), 0) == sum(kind in event for event in said)
    assert len(trained.history) == end // EPOCH_STEPS


@few
@given(scripts, st.booleans())
def test_the_optimiser_remembers_nothing_that_is_gone(script: Script, adam: bool) -> None:
    net, _, memory = run(script, adam=adam)
    names = [name for name, _ in net.named_parameters()]
    slots = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
    for step, (_, tensors, _) in memory.saves.items():
        event = script.get(step, Event(0))
        if event & (Event.REWIND | Event.RESET):
            assert not any(key.startswith("optimiser/") for key in tensors)
        elif event & (Event.PRUNE | Event.REWIRE):
            for name, _, _ in maskings(net):
                host = name.removesuffix("weight") + "parametrizations.weight."
                mask = tensors[f"net/{host}0.mask"]
                number = names.index(f"{host}original")
                for slot in slots:
                    remembered = tensors[f"optimiser/{number}/{slot}"]
                    assert not remembered[~mask].any() and remembered[mask].any()
