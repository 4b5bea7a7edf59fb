"""``nnunet_partial demo``."""

DESCRIPTION = """Run the whole pipeline on phantoms made on the spot: three sources that each label one organ are converted,
merged, planned and preprocessed; a teacher per source, the students, stock prediction and evaluation follow. Ends with a
table and a picture. Takes under ten minutes on two cores without a GPU; interrupted, it goes on where it was."""
EXAMPLE = "nnunet_partial demo --out demo_output"


def add_arguments(parser):
    parser.add_argument("--out", default="demo_output", help="folder of everything that is made (default: demo_output)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a few training steps only: shows that it works, not how well")


def run(arguments):
    from nnunet_partial.demo.pipeline import run_demo

    run_demo(arguments.out, arguments.device, arguments.quick)
