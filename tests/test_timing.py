"""Deadlines in buckets, time in queues, call numbers, averages."""

from __future__ import annotations

import random

import pytest

from zmesh._core.timing import Average, Deadlines, QueueClock, expand

BUCKET = 1 / Deadlines.TICKS


class Armed:
    """Counts how often a timer had to be looked at."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


# -- Deadlines


def test_items_come_due_never_early_and_at_most_a_bucket_late() -> None:
    rng = random.Random(5)
    deadlines: Deadlines[int] = Deadlines(lambda: None)
    when = {item: rng.uniform(1000, 1010) for item in range(2000)}
    slots = {item: deadlines.add(time, item, 1000.0) for item, time in when.items()}
    removed = set(rng.sample(sorted(when), 500))
    for item in removed:
        slots[item].pop(item)
    came: list[int] = []
    now = 1000.0
    while deadlines.next() is not None:
        now += rng.uniform(0, 0.01)
        due = deadlines.due(now)
        assert all(when[item] < now for item in due)
        came += due
        assert all(now <= when[item] + BUCKET for item in when.keys() - removed - set(came))
    assert sorted(came) == sorted(when.keys() - removed)


def test_a_timer_set_for_next_finds_something_due_each_time() -> None:
    rng = random.Random(6)
    deadlines: Deadlines[int] = Deadlines(lambda: None)
    for item in range(300):
        deadlines.add(rng.uniform(0, 5), item, 4.0)
    found = 0
    while (now := deadlines.next()) is not None:
        due = deadlines.due(now)
        assert due
        found += len(due)
    assert found == 300


def test_the_order_is_that_of_time_then_of_adding() -> None:
    deadlines: Deadlines[str] = Deadlines(lambda: None)
    for when, item in ((3.0, "late"), (1.0, "first"), (1.0, "second"), (2.0, "middle"), (1.0, "third")):
        deadlines.add(when, item, when)
    assert deadlines.due(10.0) == ["first", "second", "third", "middle", "late"]
    assert deadlines.due(10.0) == []


def test_it_arms_once_a_bucket() -> None:
    armed = Armed()
    deadlines: Deadlines[int] = Deadlines(armed)
    for item in range(1000):
        deadlines.add(7.0, item, 6.0)
    assert armed.times == 1
    deadlines.add(6.0, 1000, 6.0)
    assert armed.times == 2
    assert deadlines.next() == 6.0 + BUCKET


def test_empty_buckets_are_forgotten() -> None:
    deadlines: Deadlines[int] = Deadlines(lambda: None)
    slots = [deadlines.add(number / 10, number, number / 10) for number in range(100)]
    for number, slot in enumerate(slots[:99]):
        slot.pop(number)
    assert deadlines.next() == 9.9 * Deadlines.TICKS // 1 / Deadlines.TICKS + BUCKET
    slots[99].pop(99)
    assert deadlines.next() is None
    assert not deadlines._near
    assert not deadlines._order


def test_an_old_bucket_takes_nothing_out_of_a_new_one() -> None:
    deadlines: Deadlines[str] = Deadlines(lambda: None)
    old = deadlines.add(1.0, "item", 1.0)
    assert deadlines.due(2.0) == ["item"]
    deadlines.add(1.0, "item", 1.0)
    old.pop("item", None)
    assert deadlines.due(2.0) == ["item"]


def test_a_bucket_that_was_emptied_takes_items_again() -> None:
    armed = Armed()
    deadlines: Deadlines[str] = Deadlines(armed)
    deadlines.add(1.0, "a", 1.0).pop("a")
    deadlines.add(1.0, "b", 1.0)
    assert deadlines.next() == 1.0 + BUCKET
    assert deadlines.due(1.0 + BUCKET) == ["b"]
    deadlines.add(1.0, "c", 1.0).pop("c")
    assert deadlines.next() is None  # forgets the bucket
    before = armed.times
    deadlines.add(1.0, "d", 1.0)
    assert armed.times == before + 1
    assert deadlines.due(2.0) == ["d"]


def test_what_is_far_comes_near_and_is_due_as_exactly() -> None:
    armed = Armed()
    deadlines: Deadlines[str] = Deadlines(armed)
    far = deadlines.add(10.5, "far", 0.0)
    deadlines.add(10.25, "sooner", 0.0)
    assert armed.times == 1
    assert deadlines.next() == 9.0
    assert deadlines.due(9.0) == []
    assert deadlines.next() == 10.25 + BUCKET
    assert deadlines.due(10.25 + BUCKET) == ["sooner"]
    far.pop("far", None)  # too late to be taken out: it had come near
    assert deadlines.due(10.5 + BUCKET) == ["far"]
    deadlines.add(20.0, "gone", 0.0).pop("gone")
    assert deadlines.due(30.0) == []
    assert deadlines.next() is None


# -- expand


def test_expand_finds_the_counter_within_2_to_the_31_below() -> None:
    rng = random.Random(7)
    for _ in range(5000):
        below = rng.choice([rng.randrange(1, 100), rng.randrange(2**31, 2**31 + 100), rng.randrange(1, 2**50)])
        counter = below - 1 - rng.randrange(min(below, 2**31))
        assert expand(counter % 2**31, below) == counter


def test_expand_around_the_wrap() -> None:
    last = 2**31 - 1
    assert expand(last, 2**31) == last
    assert expand(0, 2**31 + 1) == 2**31
    assert expand(last, 2**31 + 1) == last
    assert expand(1, 2) == 1
    assert expand(5, 5) == 5 - 2**31  # a number that was never sent: below every counter


# -- QueueClock

WRAP = 2**31
MINUTE = QueueClock.WINDOW


def test_the_offset_of_the_clocks_is_no_wait() -> None:
    rng = random.Random(8)
    for _ in range(200):
        sender, receiver = rng.randrange(WRAP), rng.randrange(2**40)
        clock = QueueClock()
        for passed in range(0, 50_000, 250):
            assert clock.waited((sender + passed) % WRAP, receiver + passed) == 0


def test_waits_are_measured_above_the_shortest_way() -> None:
    rng = random.Random(9)
    for _ in range(100):
        sender, receiver, clock = rng.randrange(WRAP), rng.randrange(2**40), QueueClock()
        clock.waited(sender, receiver + 3)  # the shortest way takes 3 ms
        passed = 0
        for _ in range(100):
            passed += rng.randrange(1, 500)  # less than a window in all
            delay = rng.choice([0, 1, 10, 5000])
            assert clock.waited((sender + passed) % WRAP, receiver + passed + 3 + delay) == delay


def test_a_shorter_way_moves_the_measure() -> None:
    clock = QueueClock()
    assert clock.waited(0, 1100) == 0
    assert clock.waited(100, 1150) == 0  # 50 ms shorter than what was the least
    assert clock.waited(200, 1300) == 50


def test_a_message_that_waited_over_the_wrap_of_the_senders_clock() -> None:
    clock = QueueClock()
    assert clock.waited(WRAP - 10, 5000) == 0
    assert clock.waited(WRAP - 5, 5005) == 0
    assert clock.waited(WRAP - 1, 5509) == 500
    assert clock.waited(0, 5510) == 500
    assert clock.waited(90, 5100) == 0


@pytest.mark.parametrize("ppm", [-100, 100])
def test_drift_does_not_look_like_a_queue(ppm: int) -> None:
    clock, worst = QueueClock(), 0
    for now in range(0, 100 * MINUTE, 100):
        worst = max(worst, clock.waited(round(now * (1 - ppm / 1e6)) % WRAP, now))
    assert worst <= 2 * MINUTE * 100 / 1e6 + 1  # what drifts in two windows, and rounding
    assert clock.waited(round(100 * MINUTE * (1 - ppm / 1e6)) % WRAP, 100 * MINUTE + 1000) >= 1000


def test_a_queue_that_stands_longer_than_two_windows_becomes_the_measure() -> None:
    clock = QueueClock()
    assert clock.waited(0, 0) == 0
    seen = [clock.waited(now, now + 300) for now in range(1000, 3 * MINUTE, 1000)]
    assert seen[0] == 300
    assert seen[MINUTE // 1000 // 2] == 300
    assert seen[-1] == 0


def test_after_a_long_silence_the_first_envelope_is_the_measure_again() -> None:
    clock = QueueClock()
    assert clock.waited(0, 0) == 0
    assert clock.waited(2 * MINUTE, 2 * MINUTE + 700) == 0
    assert clock.waited(2 * MINUTE + 10, 2 * MINUTE + 720) == 10
    assert clock.waited(2 * MINUTE + 20, 2 * MINUTE + 720) == 0


def test_a_pause_within_the_windows_is_a_wait() -> None:
    """The server was stopped for 3 s: all that had arrived stood in its queues."""
    clock = QueueClock()
    for now in range(0, 5000, 100):
        clock.waited(now, now + 1)
    assert [clock.waited(sent, 8001) for sent in (5000, 6000, 7000, 8000)] == [3000, 2000, 1000, 0]


def test_hostile_clocks_never_give_a_negative_wait_or_more_than_half_a_turn() -> None:
    rng = random.Random(10)
    for _ in range(50):
        clock, now = QueueClock(), 0
        for _ in range(200):
            now += rng.choice([0, 1, 1000, MINUTE, 3 * MINUTE])
            assert 0 <= clock.waited(rng.randrange(WRAP), now) < WRAP


# -- Average


def test_an_average_begins_with_its_first_sample() -> None:
    average = Average(10.0)
    assert average.value is None
    average.add(4.0, 100.0)
    assert average.value == 4.0


def test_an_average_stays_within_its_samples_and_follows_them() -> None:
    rng = random.Random(11)
    average, now = Average(10.0), 0.0
    for _ in range(1000):
        average.add(rng.uniform(1.0, 2.0), now)
        now += rng.expovariate(10)
        assert average.value is not None
        assert 1.0 <= average.value <= 2.0
    for _ in range(200):
        now += 1.0
        average.add(5.0, now)
    assert average.value == pytest.approx(5.0, rel=0.01)


def test_time_makes_a_sample_weigh_more() -> None:
    def after(pause: float) -> float:
        average = Average(10.0)
        average.add(0.0, 0.0)
        average.add(1.0, pause)
        assert average.value is not None
        return average.value

    weights = [after(pause) for pause in (0.0, 0.1, 1.0, 10.0, 100.0, 1e9)]
    assert weights == sorted(weights)
    assert weights[0] == pytest.approx(0.05)  # a burst is not one sample
    assert weights[3] == pytest.approx(0.5)
    assert weights[-1] == pytest.approx(1.0)


def test_a_clock_that_stands_or_goes_back_does_no_harm() -> None:
    average = Average(10.0)
    for now in (5.0, 5.0, 4.0, -100.0):
        average.add(1.0, now)
    assert average.value == pytest.approx(1.0)


@pytest.mark.parametrize(("sample", "low", "high"), [(1.0, 0.95, 1.0), (0.1, 0.1, 0.25)])
def test_a_faded_average_is_believed_only_if_the_next_sample_agrees(sample: float, low: float, high: float) -> None:
    average = Average(10.0)
    average.add(1.0, 0.0)
    average.fade(0.5, 5.0)
    average.fade(0.25, 10.0)
    assert average.value == 0.25
    average.add(sample, 12.0)
    assert average.value is not None
    assert low <= average.value <= high
    average.add(sample, 12.1)
    assert low <= average.value <= high
