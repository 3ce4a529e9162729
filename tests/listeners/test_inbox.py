"""How deliveries become batches."""

import time
from datetime import timedelta

from tests.listeners.broker_harness import ACTIONS, BrokerHarness, wait_until


def test_a_message_that_comes_alone_goes_on_at_once_and_a_flood_in_batches(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(pulse_linger=timedelta(seconds=3), pulse_batch=500):
        broker_harness.press("0")
        began = time.monotonic()
        wait_until(broker_harness.service.events)
        alone = time.monotonic() - began
        broker_harness.press(*(str(number) for number in range(1, 1_201)))
        wait_until(lambda: len(broker_harness.service.events()) == 1_201)
    assert alone < 3
    assert broker_harness.service.bodies() == [str(number) for number in range(1_201)]
    sizes = [len(batch) for batch in broker_harness.service.batches[ACTIONS]]
    assert max(sizes) == 500
    assert len(sizes) <= 5, sizes
    assert len({event.delivery for event in broker_harness.service.events()}) == 1_201
    assert len({event.channel for event in broker_harness.service.events()}) == 1
    assert broker_harness.waiting() == 0
