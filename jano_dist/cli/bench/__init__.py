"""`jano-dist bench`: measurements on the user's own model and machines, a short file per sub-command."""

import typer

from jano_dist.cli.bench import recognition, scaling

app = typer.Typer(help="Measure quality, recognition and scaling on your own model and machines.")
app.command()(recognition.recognition)
app.command()(scaling.scaling)
