"""Training behind protections that do more than add noise: each trains, and draws by its step's seed; a user's ε."""

from __future__ import annotations

import pytest
import torch
from scenes import build_client

from pplleak import data
from pplleak.federation import privacy, rounds
from pplleak.federation.protection import Protection
from pplleak.federation.rounds import Federation

TRAINED = (
    "projected:rate=0.5", pytest.param("autoencoded:code=8,simulated=40", marks=pytest.mark.slow),
    "dpfedavg:noise_multiplier=0.01", "mixup",
    "conceal:steps=1", "mix:clients=3", "outpost", "soften", "same_label", "refiner:steps=2", "obscure:steps=2",
    "inf2guard",
)  # fmt: skip


@pytest.mark.parametrize("said", TRAINED)
def test_a_network_trains_behind_it_and_a_step_repeats_itself(said: str) -> None:
    images, federation, ends = data.public("digits"), Federation(batch_size=16), []
    for _ in range(2):
        client = build_client("mlp", {"widths": (8,), "activation": "gelu"}, (1, 8, 8), 10)
        before = rounds.evaluate(client, images)[1]
        for number in range(1, 21):
            rounds.step(client, images, federation, Protection.parse(said), number, 0)
        ends.append(torch.cat([p.flatten() for p in client.parameters.values()]))
    assert torch.equal(*ends)
    after = rounds.evaluate(client, images)[1]
    assert after < before - 0.002, "it learns nothing"


@pytest.mark.parametrize("said", ["mixup", "conceal:steps=1", "mix:clients=3", "same_label"])
def test_others_hold_nothing_on_which_accuracy_is_measured(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Measured(Exception):
        pass

    def private(*_: object) -> None:
        raise Measured

    images, client = data.public("digits"), build_client("mlp", {"widths": (8,)}, (1, 8, 8), 10)
    monkeypatch.setattr(data, "private", private)
    rounds.step(client, images, Federation(batch_size=16), Protection.parse(said), 1, 0)
    with pytest.raises(Measured):  # wrong twin: a client that shares, whose companions are as private as its batch
        Protection.parse(said).share(client, images.x[:2], images.y[:2])


def test_the_epsilon_of_a_user_is_that_of_the_rounds_in_which_it_was_asked() -> None:
    pytest.importorskip("opacus")
    federation, said = Federation(clients=5, participants=2), Protection.parse("dpfedavg:noise_multiplier=3")
    found = rounds.epsilon(federation, said, 1000, 10)  # asked four times, and always whole
    assert found == pytest.approx(privacy.epsilon(3.0, 1.0, 4, delta=federation.delta))
    example = rounds.epsilon(federation, Protection.parse("dpsgd:noise_multiplier=3"), 1000, 10)
    assert example is not None and example < found  # an example is hidden in the batch, too
