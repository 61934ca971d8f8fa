"""Starting and stopping the shards of a store."""

from contextlib import suppress

from actors.layout.layout import BY_ID_ALONE
from actors.layout.records import check_wanted, layout_record, publish, shards_folder, wanted_layout
from actors.reshard import reshard
from actors.shards.processes import clean, kill, running, start_generation
from common.config import Config
from common.errors import Conflict
from stores.log.backend_marker import check_shards


def start_shards(config: Config, dim: int) -> None:
    """Start the shards that are not running yet; returns when every log is open.

    Remains of an interrupted reshard are removed, and a store of the first layout is converted to the present one.
    `dim` is the embedder's. Raises `Conflict` if the folder was created with other settings, and the shard's own
    error if a log cannot be opened.
    """
    check_shards(shards_folder(config), config.store.backend)
    record = layout_record(config)
    record.swap(None, wanted_layout(config))
    layout = record.read()
    assert layout is not None, "it was just made"
    check_wanted(config, layout)
    with suppress(Conflict), record.exclusive():  # a running reshard leaves nothing behind
        clean(config, layout)
    start_generation(config, layout, dim)
    publish(config, layout)
    if layout.version == BY_ID_ALONE:
        reshard(config, layout.shards)


def stop_shards() -> None:
    """End the shard actors of this Ray cluster; their data stays on disk."""
    for name in running():
        kill(name)
