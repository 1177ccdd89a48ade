"""The clock of phases: every moment counts once, for the innermost phase that is open."""

import pytest
from gumbelrl.agents.phases import PhaseClock, TimedMethod, phase
from hypothesis import given
from hypothesis import strategies as st


class FakeTime:
    """A clock that goes on when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


class Agent:
    """Methods that take 1, 10 and 100 seconds of their own."""

    def __init__(self, time):
        self.time = time

    def step(self):
        self.time.work(1)

    def act(self):
        self.time.work(10)
        self.step()

    def train(self):
        self.time.work(100)
        phase("critic")
        self.time.work(200)
        self.step()
        phase("actor")
        self.time.work(400)

    def evaluate(self):
        self.time.work(1000)
        self.act()
        self.train()

    def fail(self):
        self.time.work(5)
        raise RuntimeError


METHODS = {
    "step": "environment",
    "act": "acting",
    "train": "training",
    "fail": "training",
}


def clocked(time, agent):
    methods = [TimedMethod(agent, name, belongs_to) for name, belongs_to in METHODS.items()]
    return [*methods, TimedMethod(agent, "evaluate", "evaluation", whole=True)]


def test_nested_calls_and_marks_by_hand():
    time = FakeTime()
    agent, clock = Agent(time), PhaseClock(time)
    time.work(7)  # before the clock is set to zero
    with clock.around(clocked(time, agent)):
        clock.restart()
        time.work(3)
        agent.act()
        agent.train()
        time.work(4)
        agent.evaluate()
        times = clock.read()
    assert times.seconds == {
        "rest": 7,
        "acting": 10,
        "environment": 2,
        "training": 100,
        "critic": 200,
        "actor": 400,
        "evaluation": 1000 + 11 + 701,
    }
    assert times.calls == {
        "acting": 1,
        "environment": 2,
        "training": 1,
        "critic": 1,
        "actor": 1,
        "evaluation": 1,
    }
    assert times.total == time.now - 7


def test_a_phase_inside_itself_is_one_call_and_ends_what_it_marked():
    class Wrapped(Agent):
        def train(self):
            self.time.work(1)
            self.update()
            self.time.work(2)  # after the update, so no longer the actor

        def update(self):
            phase("actor")
            self.time.work(50)

    time = FakeTime()
    agent, clock = Wrapped(time), PhaseClock(time)
    methods = [TimedMethod(agent, name, "training") for name in ("train", "update")]
    with clock.around(methods):
        agent.train()
        agent.train()
    times = clock.read()
    assert times.seconds == {"training": 6, "actor": 100, "rest": 0}
    assert times.calls == {"training": 2, "actor": 2}


def test_what_is_open_when_the_clock_restarts_goes_on():
    time = FakeTime()
    agent, clock = Agent(time), PhaseClock(time)

    def act():
        time.work(30)
        clock.restart()
        time.work(6)

    agent.act = act
    with clock.around([TimedMethod(agent, "act", "acting")]):
        agent.act()
    assert clock.read().seconds == {"acting": 6, "rest": 0}


def test_an_error_closes_what_it_leaves_and_nothing_stays_wrapped():
    time = FakeTime()
    agent, clock = Agent(time), PhaseClock(time)
    inherited, own = Agent.step, vars(agent).copy()
    with clock.around([*clocked(time, agent), TimedMethod(Agent, "step", "environment")]):
        with pytest.raises(RuntimeError):
            agent.fail()
        time.work(8)
        phase("critic")  # in no method: nothing to mark
        time.work(1)
    assert clock.read().seconds == {"training": 5, "rest": 9}
    assert Agent.step is inherited
    assert vars(agent) == own
    phase("critic")  # nobody listens
    agent.train()
    assert "critic" not in clock.read().seconds


PROGRAMS = st.recursive(
    st.integers(0, 9),  # seconds of work
    lambda inner: st.tuples(
        st.sampled_from(["environment", "acting", "training", "evaluation"]),
        st.lists(st.one_of(inner, st.sampled_from(["critic", "actor"])), max_size=4),
    ),
    max_leaves=20,
)


@given(st.lists(PROGRAMS, max_size=5))
def test_whatever_calls_whatever_the_phases_add_up_to_the_whole(program):
    time = FakeTime()
    clock = PhaseClock(time)
    expected = {}

    class Player:
        """Runs a program; keeps the stack of phases by itself."""

    def play(part, label, closed):
        """Returns the label after the part."""
        if isinstance(part, int):
            time.work(part)
            expected[label] = expected.get(label, 0) + part
        elif isinstance(part, str):
            phase(part)
            return label if closed or label == "rest" else part
        else:
            name, parts = part
            getattr(player, name)(parts, label if closed else name, closed or name == "evaluation")
        return label

    def play_all(parts, label, closed):
        for part in parts:
            label = play(part, label, closed)

    player = Player()
    names = ("environment", "acting", "training", "evaluation")
    for name in names:
        setattr(player, name, play_all)
    with clock.around([TimedMethod(player, n, n, whole=n == "evaluation") for n in names]):
        clock.restart()
        for part in program:
            play(part, "rest", False)
        times = clock.read()
    assert times.total == time.now
    assert {k: v for k, v in times.seconds.items() if v} == {k: v for k, v in expected.items() if v}
