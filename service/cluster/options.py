"""What may be said of the application in a configuration file of Ray Serve."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.settings import Settings, load_settings

FRONT, ENGINE = "Front", "Engine"
"""The names of the two deployments, by which the file changes their options."""


class Options(BaseModel):
    """The ``args`` of the application."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of saccade serve by their names; the environment of each node, "
        "SACCADE_*, gives those that are not here",
    )
    models_per_replica: int = Field(
        default=0,
        ge=0,
        description="Models that an engine keeps loaded, the one asked last longest ago making "
        "room for another; 0: every model of the repository, loaded at the start",
    )

    def on_this_node(self) -> Settings:
        """The settings for a replica here. ``/metrics`` is off unless asked for: one scrape would
        reach one replica, and the next another. Ray exports what is measured.

        Raises:
            BadSettings: naming the setting, what was found, and what is allowed.
        """
        return load_settings({"metrics_access": "off"} | self.settings)
