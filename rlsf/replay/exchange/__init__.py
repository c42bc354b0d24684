"""The buffer leaves and comes back: groups as Parquet, JSONL and datasets, and stores made from other stores."""

from rlsf.replay.exchange.transfer import export_groups, from_dataset, import_groups, load_into, to_dataset

__all__ = ["export_groups", "from_dataset", "import_groups", "load_into", "to_dataset"]
