"""`jano-dist bench`: what is fast, and what it costs in quality, measured on the user's own machine."""

import typer

from jano_dist.cli.bench.quality import quality

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and quality on this machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _several() -> None:
    """With a single command typer would leave its name out."""


app.command()(quality)
