"""`jano-dist bench`: what is fast, and what it costs in quality, measured on the user's own machine."""

import typer

from jano_dist.cli.bench.quality import quality
from jano_dist.cli.bench.recognition import recognition
from jano_dist.cli.bench.scaling import scaling

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and quality on this machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quality)
app.command()(recognition)
app.command()(scaling)
