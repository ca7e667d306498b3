"""What stands between a client's update and the server: a defence, which changes the client, and a channel.

none      gaussian:sigma=0.1      dpsgd:noise_multiplier=1,clip=1      soteria:rate=0.4+gaussian:sigma=0.01
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput, unknown
from pplleak.federation import defences
from pplleak.settings import Named

NONE = "none"
NOISE = ("gaussian", "laplace", "elastic", "rounded")  # channels whose strength is their sigma
QUIET = 1e-6  # σ of what is shared in full: less than float32 rounds off, and a posterior needs some


@dataclass(frozen=True)
class Protection:
    """A defence and a channel, each with its settings or None; without both, the update is shared as it is.

    It is printed as it was given, so that rows and folders are called by it; `filled` has every setting.
    """

    defence: Named | None = None
    channel: Named | None = None

    @classmethod
    def parse(cls, text: str | Protection) -> Protection:
        """`none`, a channel, a defence, or DEFENCE+CHANNEL, each NAME or NAME:SETTING=VALUE,SETTING=VALUE.

        Where noise is not what a channel is for (`topk`, `sign`, …) and no sigma is named, it adds `QUIET`.

        Raises:
            BadInput: an unknown name or setting, or a value that is refused.
        """
        if isinstance(text, Protection):
            return text
        made = cls()
        for part in re.split(r"\+(?=[a-z_]+(?::|\+|$))", text):  # a policy of ATS has pluses of its own
            named = Named.parse(part)
            if named.name == NONE:
                if named.settings or part != text:
                    raise BadInput(f"'{text}': none stands alone, without settings")
            elif named.name in channels.names() and made.channel is None:
                made = replace(made, channel=named)
            elif named.name in defences.names() and made.defence is None:
                made = replace(made, defence=named)
            elif named.name in channels.names() or named.name in defences.names():
                raise BadInput(f"'{text}' names two channels or two defences: one of each is what a client has")
            else:
                raise unknown("defence", named.name, [NONE, *channels.names(), *defences.names()])
        made.filled()
        return made

    @property
    def strength(self) -> str:
        """The settings that were given, in words: `sigma=0.1`."""
        parts = [str(n).partition(":")[2] for n in (self.defence, self.channel) if n is not None]
        return "+".join(filter(None, parts))

    @property
    def name(self) -> str:
        """What it is without its settings: `gaussian`, `soteria+gaussian`, `none`."""
        return "+".join(n.name for n in (self.defence, self.channel) if n is not None) or NONE

    def filled(self, where: str = "") -> Protection:
        """The same with every setting at its value; raises BadInput, which begins with `where`, for one that is
        unknown or refused."""
        return Protection(
            self.defence and defences.check(self.defence, where),
            self.channel and channels.check(_quiet(self.channel), where),
        )

    @property
    def sigma(self) -> float | None:
        """σ of the channel; None where it has none, or it is to be inferred, or there is no channel."""
        sigma = None if self.channel is None else self.channel.settings.get("sigma")
        return None if sigma == channels.INFER else sigma

    @property
    def infers_sigma(self) -> bool:
        """Whether nobody told σ: a posterior then has it as a latent."""
        return self.channel is not None and self.channel.settings.get("sigma") == channels.INFER

    def with_sigma(self, sigma: float | str) -> Protection:
        """The same with another σ of its channel, or one to be inferred; raises BadInput where it has none."""
        made = replace(self, channel=(self.channel or Named("gaussian")).with_(sigma=sigma))
        made.filled()
        return made

    @property
    def settings(self) -> dict[str, Any]:
        """All that is known of the defence and the channel, by the names under which a model may ask for it."""
        return {n: v for part in (self.defence, self.channel) if part is not None for n, v in part.settings.items()}

    def observable(self) -> Protection:
        """The same with a channel: an update shared in full is seen through noise of `QUIET`."""
        return self if self.channel is not None else replace(self, channel=Named("gaussian", {"sigma": QUIET}))

    def is_channel(self, name: str) -> bool:
        """Whether the channel is the one of that name."""
        return self.channel is not None and self.channel.name == name

    def share(self, client: Client, x: Tensor, y: Tensor, public: Tensor | None = None) -> Tensor:
        """What the server sees of one batch x (B, *input_shape), y (B,): (D,). Draws by torch's own generator. A
        channel works in float32 on what a client computes in half precision.

        Args:
            public: images that the server has, on which a channel may rest (`aggregated`).
        """
        full = self.filled()
        if self.infers_sigma:
            raise BadInput("a client that is simulated needs the noise it adds: give sigma a number, and let the "
                           "adversary infer it, as the model's sigma=infer")  # fmt: skip
        with torch.no_grad():
            if full.defence is None and full.channel is None:
                return client.update(x, y, client.noise(len(y)), client.order(len(y))).materialise()
            update: Update
            if full.defence is not None:
                update = DenseUpdate(defences.share(client, x, y, full.defence)[None])
            else:
                update = client.update(x, y, client.noise(len(y)), client.order(len(y)))
            if client.dtype.itemsize < 4:  # half precision would round noise off, too
                update = DenseUpdate(update.materialise().float()[None])
            sent = None if full.defence is None else defences.sent(client, x, y, full.defence)
            if full.channel is None:
                return update.materialise()
            g = channels.make(full.channel, update, client, len(y), public).sample()
            return g if sent is None else g * sent

    def to_json(self) -> dict[str, Any]:
        """As an observation's file has it; the inverse is `from_json`."""
        full = self.filled()
        return {
            "defence": {"name": "", "settings": {}} if full.defence is None else full.defence.to_json(),
            "channel": {"name": "", "settings": {}} if full.channel is None else full.channel.to_json(),
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any], where: str = "") -> Protection:
        """What `to_json` wrote, checked anew."""
        parts = (kept["defence"], kept["channel"])
        defence, channel = (Named(p["name"], p["settings"]) if p["name"] else None for p in parts)
        return cls(defence, channel).filled(where)

    def __str__(self) -> str:
        return "+".join(str(n) for n in (self.defence, self.channel) if n is not None) or NONE


def _quiet(channel: Named) -> Named:
    noisy = channel.name in channels.names() and "sigma" in inspect.signature(channels.get(channel.name)).parameters
    return (
        channel.with_(sigma=QUIET)
        if noisy and channel.name not in NOISE and "sigma" not in channel.settings
        else channel
    )
