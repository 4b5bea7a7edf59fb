"""Stands in for the commands of a run, by whichever name it is called: quick, deterministic, killable anywhere.

What a stage writes is a hash of everything that it read, so that one wrong or half-written input changes all that
follows. A training has epochs, keeps a checkpoint after each, and goes on from it; labelling goes on case by case; a
prediction starts over. Whatever is written is written atomically, but for the predictions, as with nnU-Net's own.
"""

import hashlib
import json
import os
import sys
import time

EPOCHS, PAUSE_S = 4, float(os.environ.get("STUB_PAUSE_S", "0.02"))


def main():
    name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
    if os.environ.get("STUB_FAILS") == name:
        sys.exit("the stub was told to fail")
    if name == "nnunet_partial":
        name, argv = argv[0], argv[1:]
    {
        "nnUNetv2_train": train,
        "nnUNetv2_predict_from_modelfolder": predict,
        "pseudo-label": label,
        "variant": variant,
        "fuse": fuse,
        "atso": atso,
    }[name](argv)


def option(argv, name, default=None):
    return argv[argv.index(name) + 1] if name in argv else default


def options(argv, name):
    """All values of an option."""
    rest = argv[argv.index(name) + 1 :]
    return rest[: next((i for i, text in enumerate(rest) if text.startswith("--")), len(rest))]


def digest(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def read(path):
    with open(path) as handle:
        return handle.read()


def write(text, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.tmp"  # what a killed one left is written over
    with open(temporary, "w") as handle:
        handle.write(text)
    os.replace(temporary, path)


def preprocessed():
    root = os.environ["nnUNet_preprocessed"]
    return os.path.join(root, os.listdir(root)[0])


def variant(argv):
    base = option(argv, "--base")
    time.sleep(PAUSE_S)
    settings = [argv[i + 1] for i, text in enumerate(argv) if text == "--set"]
    write(json.dumps({"settings": sorted(settings)}), os.path.join(preprocessed(), f"{base}_{option(argv, '--name')}.json"))


def train(argv):
    configuration, fold, plans = argv[1], argv[2], option(argv, "-p")
    settings = json.loads(read(os.path.join(preprocessed(), f"{plans}.json")))["settings"]
    dataset = os.path.basename(preprocessed())
    folder = os.path.join(os.environ["nnUNet_results"], dataset, f"nnUNetTrainerATSO__{plans}__{configuration}", f"fold_{fold}")
    state = ["start", 0]
    for text in settings:
        key, _, value = text.partition("=")
        if key == "labels":
            state = [digest(state[0], *hashes(value)), 0]
        elif key == "atso.initial_weights" or key == "atso.exclude":
            state = [digest(state[0], read(value)), 0]
    latest = os.path.join(folder, "checkpoint_latest.pth")
    if os.path.isfile(latest):
        state = json.loads(read(latest))
    while state[1] < EPOCHS:
        time.sleep(PAUSE_S)
        print("Epoch", state[1], flush=True)
        state = [digest(state[0], state[1]), state[1] + 1]
        write(json.dumps(state), latest)
    write(state[0], os.path.join(folder, "checkpoint_final.pth"))
    os.remove(latest)


def hashes(folder):
    """Every label below ``folder``, which must be finished."""
    found = []
    for root, _, files in sorted(os.walk(folder)):
        if any(i.endswith("_seg.b2nd") for i in files):
            names = json.loads(read(os.path.join(root, "provenance.json")))["cases"]
            found += [f"{i} {read(os.path.join(root, i + '_seg.b2nd'))}" for i in sorted(names)]
    return sorted(found)


def label(argv):
    out, models = option(argv, "--out"), options(argv, "--from")
    weights = [read(os.path.join(i, f"fold_{option(argv, '--fold')}", "checkpoint_final.pth")) for i in models]
    weights = weights[0] if len(weights) == 1 else digest(option(argv, "--plans"), option(argv, "--rule"), *weights)
    cases = read(option(argv, "--cases")).split()
    for case in cases:
        file = os.path.join(out, f"{case}_seg.b2nd")
        if not os.path.isfile(file):
            time.sleep(PAUSE_S)
            write(digest(weights, case), file)
    write(json.dumps({"model": models, "sha256": digest(weights), "cases": cases}), os.path.join(out, "provenance.json"))


def predict(argv):
    out = option(argv, "-o")
    weights = read(os.path.join(option(argv, "-m"), f"fold_{option(argv, '-f')}", "checkpoint_final.pth"))
    write("{}", os.path.join(out, "predict_from_raw_data_args.json"))  # nnU-Net writes it first
    with open(os.path.join(out, "case.nii.gz"), "w") as handle:
        for character in digest(weights, "case"):
            handle.write(character)
            handle.flush()
            time.sleep(PAUSE_S / 16)


def fuse(argv):
    out, folders = option(argv, "--out"), options(argv, "--pred")
    write("{}", os.path.join(out, "fusion.json"))  # written first, as nnU-Net writes its arguments
    found = [read(os.path.join(i, "case.nii.gz")) for i in folders]
    time.sleep(PAUSE_S)
    write(digest(option(argv, "--rule"), *found), os.path.join(out, "case.nii.gz"))


def atso(argv):
    time.sleep(PAUSE_S)
    if argv[0] == "split":
        cases = [f"case_{i}" for i in range(6)]
        parts = int(option(argv, "--subsets"))
        out = option(argv, "--out")
        for i in range(parts):
            write("\n".join(cases[i::parts]), os.path.join(out, f"subset_{i + 1}.txt"))
        write("\n".join(cases), os.path.join(out, "reference.txt"))
        write("labelled_0", os.path.join(out, "labelled.txt"))
    elif argv[0] == "exclude":
        write(digest(*hashes(argv[1])), option(argv, "--out"))
    else:
        found = hashes(os.path.join(argv[1], "labels"))
        for root, _, files in sorted(os.walk(os.path.join(argv[1], "predictions"))):
            found += [read(os.path.join(root, i)) for i in sorted(files)]
        write(digest(*found), os.path.join(argv[1], "report", "index.html"))


if __name__ == "__main__":
    main()
