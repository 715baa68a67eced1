"""The shapes of the small routes' replies, for the OpenAPI document only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_CLOSED = ConfigDict(extra="forbid")


class ModelCard(BaseModel):
    model_config = _CLOSED

    id: str
    object: Literal["model"]
    created: int = Field(description="seconds since 1970")
    owned_by: str
    max_model_len: int | None = Field(description="tokens; null until the engine has started")


class ModelList(BaseModel):
    model_config = _CLOSED

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    model_config = _CLOSED

    status: Literal["ok", "unavailable"]


class Version(BaseModel):
    model_config = _CLOSED

    version: str
