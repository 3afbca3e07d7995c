"""Settings of the service and of the traffic stage.

`ServeConfig` is what `loopline serve` reads; `TrafficConfig` is the stage `serve.stage:traffic`. Not covered:
which model is served (an argument of `serve`, or the stage's `release` input).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopline.base.config import Config, Runtime
from loopline.base.stage import Takes, stage


class ServeConfig(Runtime):
    """How the server answers and records; changes nothing that any stage computes."""

    name: str = Field(default="loopline", min_length=1)
    """Model name that clients send; the released checkpoint's own name is accepted too."""
    max_batch: int = Field(default=64, ge=1)
    """Most requests that share one generation batch."""
    window_ms: float = Field(default=5.0, ge=0, le=10_000)
    """How long the first request of a batch waits for others, in milliseconds."""
    max_queue: int = Field(default=512, ge=1)
    """Requests allowed to wait; beyond it the server answers 429."""
    default_max_tokens: int = Field(default=128, ge=1)
    """Tokens generated when a request names no limit."""
    default_temperature: float = Field(default=1.0, ge=0, le=2)
    """Temperature when a request names none."""
    max_choices: int = Field(default=16, ge=1)
    """Largest `n` a request may ask for."""
    consent: bool = False
    """Whether a request that says nothing about consent counts as consenting to be kept for training."""
    without_consent: Literal["usage", "nothing"] = "usage"
    """What is recorded of a request without consent: `usage` (no content, no tokens) or `nothing`."""
    api_key: str | None = Field(default=None, min_length=8)
    """When set, clients must send it as a bearer token."""
    busy_timeout_ms: int = Field(default=10_000, ge=0)
    """How long a SQLite writer waits for another one."""


class LiveTraffic(Runtime):
    """Where recorded traffic lies; a place, so never part of identity."""

    database: str | None = None
    """SQLAlchemy URL or SQLite path of recorded traffic to export instead of playing the scripted client."""


@stage(
    "traffic",
    run="loopline.serve.stage:traffic",
    takes={"release": Takes("release"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="traffic",
    area=9,
    version=2,
)
class TrafficConfig(Config):
    """The traffic stage: a scripted client talks to the real server and the recorded requests are exported."""

    conversations: int = Field(default=240, ge=1)
    """Conversations played, beside the duplicates."""
    tasks: tuple[str, ...] = ()
    """Task sets, by name or as `tag:<tag>`, that the scripted users ask about; empty takes all whose tasks need no
    tools."""
    pii_share: float = Field(default=0.15, ge=0, le=1)
    """Share of conversations whose user mentions an e-mail address, a phone number or a card number."""
    duplicate_share: float = Field(default=0.1, ge=0, le=1)
    """Extra conversations, as a share of `conversations`, that repeat an earlier one's question."""
    follow_up_share: float = Field(default=0.2, ge=0, le=1)
    """Share of conversations with a second question in the same conversation."""
    consent_share: float = Field(default=0.9, ge=0, le=1)
    """Share of users who consent to their conversation being kept."""
    feedback_share: float = Field(default=0.7, ge=0, le=1)
    """Share of conversations whose user leaves feedback."""
    max_tokens: int = Field(default=96, ge=1)
    """Most tokens per answer."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of the scripted requests; production traffic is sampled."""
    wave: int = Field(default=48, ge=1)
    """Requests in flight together; they form one generation batch, so the content does not depend on timing."""
    live: LiveTraffic = LiveTraffic()
    """Recorded traffic to export; the scripted client plays when it names none."""
    live_digest: str | None = None
    """`serve.export.traffic_digest` of that database; set together with `live`, so new traffic is a new artifact."""

    @model_validator(mode="after")
    def _live_traffic_needs_its_digest(self) -> TrafficConfig:
        if (self.live.database is None) != (self.live_digest is None):
            raise ValueError("set live.database and live_digest together (`loopline loop traffic` does)")
        return self
