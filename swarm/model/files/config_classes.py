"""The one door to transformers' config classes.

Importing any of them brings its modelling code along, two seconds of a processor (transformers 5.23). So it waits until
somebody asks for a class; what a start needs of them is kept (`files.known`), and a requester then asks for none.
"""

from __future__ import annotations

from typing import Any


def config_class(kind: object) -> Any | None:
    """The class of a config.json's `model_type`; None for a type that this transformers does not know."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
