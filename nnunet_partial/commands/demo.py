"""``nnunet_partial demo``."""

from nnunet_partial.orchestration.executor_options import add_jobs_option, jobs_of

DESCRIPTION = """Run the whole pipeline on phantoms made on the spot: three sources that each label one organ are converted,
merged, planned and preprocessed; a teacher per source, the students, stock prediction and evaluation follow. Ends with a
table, a picture and the page of the comparison. Takes under ten minutes on two cores without a GPU; interrupted, it goes on
where it was."""
EXAMPLE = "nnunet_partial demo --out demo_output"


def add_arguments(parser):
    parser.add_argument("--out", default="demo_output", help="folder of everything that is made (default: demo_output)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_jobs_option(parser)
    parser.add_argument(
        "--downloads-only",
        action="store_true",
        help="make the phantoms alone, as downloads and a test set below --out: for nnunet_partial run examples/demo.toml",
    )
    parser.add_argument("--quick", action="store_true", help="a few training steps only: shows that it works, not how well")


def run(arguments):
    import os

    from nnunet_partial.demo.pipeline import make_phantoms, run_demo
    from nnunet_partial.orchestration.executors import make_executor

    if arguments.downloads_only:
        print(f"phantoms: {make_phantoms(arguments.out, arguments.quick)}")
        return
    folder, jobs = os.path.abspath(arguments.out), jobs_of(arguments, arguments.device)
    executor = make_executor("local", folder, gpus=None if arguments.device == "cuda" else (), processes=jobs)
    run_demo(folder, arguments.device, arguments.quick, executor)
