"""What co-training's test DSC would be with the other of its two networks, which the choice at the end of training left out.

    python benchmarks/other_network.py --work WORK [--work ANOTHER] --out benchmarks/results/other_network.json

Reads finished co-training models of ``benchmarks/accuracy.py hippocampus`` in WORK, puts the weights of the other average into a copy, and
predicts the test cases by nnU-Net's own command, as the study does. Seconds to a minute a model.
"""

import argparse
import os
import re
import shutil
import tempfile
from pathlib import Path

import studies  # beside this file, as circumstances is
import torch
from circumstances import circumstances

from nnunet_partial import paths
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.files import load_checkpoint, write_json
from nnunet_partial.orchestration.foreground import run

OTHER = {"network": "peer", "peer": "network"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, action="append", required=True, help="folder of a finished study")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    with exit_on_user_error():
        rows = []
        for work in arguments.work:
            rows += [
                measured(model, work) for model in sorted(work.glob("hippocampus/nnUNet_results/*/nnUNetTrainerCoTraining*"))
            ]
        if not rows:
            raise UserError(
                f"{arguments.work[0]} holds no co-training model of hippocampus. Train one with benchmarks/accuracy.py first."
            )
        write_json({**circumstances(), "rows": rows}, arguments.out)


def measured(model, work):
    """Name, seed, which network was deployed, and the test DSC (percent) of both."""
    base = work.absolute() / "hippocampus"
    studies.use_folders(base, "cpu")
    checkpoint = load_checkpoint(paths.final_checkpoint(model, 0), map_location="cpu")
    state = checkpoint["nnunet_partial"]
    found = {}
    for name in (state["deployed"], OTHER[state["deployed"]]):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / model.name
            (copy / "fold_0").mkdir(parents=True)
            for file in ("plans.json", "dataset.json"):
                shutil.copy(model / file, copy / file)
            torch.save({**checkpoint, "network_weights": state["averages"][name]["weights"]}, paths.final_checkpoint(copy, 0))
            argv = ["nnUNetv2_predict_from_modelfolder", "-i", base / "test" / "imagesTs", "-o", Path(folder) / "out", "-m", copy]
            more = ["-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar", "--disable_tta"]
            run([*argv, *more], Path(folder) / "predict.log")
            truth, options = base / "test" / "labelsTs", {"metrics": ("dice",), "processes": 1, "progress": False}
            rows = evaluate_folder(Path(folder) / "out", truth, "621", annotated="all", **options)
            found[name] = sum(i["dice"] for i in rows) / len(rows) * 100
    trainer = model.name.split("__")[0]
    row = {
        "trainer": trainer,
        "seed": int(re.search(r"-s(\d+)_", model.name).group(1)),
        "deployed": state["deployed"],
        "dsc": found[state["deployed"]],
        "dsc_of_the_other": found[OTHER[state["deployed"]]],
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
