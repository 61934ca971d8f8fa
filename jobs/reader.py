"""Train the reader: an adapter that teaches the model to read memories injected as independent blocks.

    python -m jobs.reader --out runs/reader                                   # train, or go on; publish nothing
    python -m jobs.reader --out runs/reader --store .sharpwave                # publish as `base:reader` of a store

Needs neither an instance nor Ray. See `train.encoders.reader`; the report has the cost of the training and the loss of
quality of answers without memory.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import SharpwaveError
from common.files import write_json
from models.weights.adapters import AdapterStore
from models.weights.load import load_model
from models.weights.load_report import check_folder
from train.encoders.reader import ReaderConfig, train

ALIAS = "reader"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=ReaderConfig().steps)
    parser.add_argument("--scenes", type=int, default=ReaderConfig().scenes)
    parser.add_argument("--lr", type=float, default=ReaderConfig().lr)
    parser.add_argument("--seed", type=int, default=ReaderConfig().seed)
    parser.add_argument("--threads", type=int, default=1, help="of the student; the teacher has as many")
    parser.add_argument("--out", type=Path, default=Path("runs/reader"), help="checkpoints and report")
    parser.add_argument("--store", type=Path, help="folder of the store to publish in; none: not published")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    config = ReaderConfig(
        steps=arguments.steps, scenes=arguments.scenes, lr=arguments.lr, seed=arguments.seed
    )
    try:
        loaded = load_model(arguments.model, arguments.dtype)
        if loaded.device.type == "cpu":
            # The fused kernel's backward is several times slower than plain matrix products on a CPU.
            loaded.model.set_attn_implementation("eager")
        folder, report = train(loaded, config, arguments.out, lambda text: print(text, flush=True))
        write_json(arguments.out / "report.json", report)
        if arguments.store is not None:
            check_folder(loaded.model, folder)
            store = AdapterStore(arguments.store.expanduser() / "adapters")
            report["digest"] = store.publish(folder, report, alias=ALIAS)
    except SharpwaveError as error:
        print(f"reader: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    print(json.dumps({**report, "folder": str(folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
