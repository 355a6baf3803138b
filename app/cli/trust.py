"""The option by which a user trusts code that a bundle names, on every command that opens bundles."""

import click


def _allow(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
    if names:
        from natscope.precompute.training.trusted import allow

        allow(names)


allow_code = click.option(
    "--allow-code",
    multiple=True,
    metavar="MODULE",
    expose_value=False,
    callback=_allow,
    help="Run the code of this module, or of module:factory alone, if it makes a bundle's network; can be repeated.",
)
