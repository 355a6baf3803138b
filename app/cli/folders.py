"""The options of `natscope precompute` for folders of images."""

from collections.abc import Callable
from typing import Any

import click


def reads(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how the images of a folder are found and read."""
    for option in reversed(
        (
            click.option("--skip-broken", is_flag=True, help="Skip files of a folder that cannot be read."),
            click.option(
                "--test-folder",
                metavar="NAME",
                help="Folder beside train that holds the test images; test, or the only one with a usual name.",
            ),
            click.option(
                "--missing-classes",
                is_flag=True,
                help="Go on if a class has no test image, and without test images of classes that train lacks.",
            ),
            click.option(
                "--fit",
                type=click.Choice(["pad", "crop"]),
                default="pad",
                show_default=True,
                help="Fit images into a square with bars in their border's colour, or take their middle.",
            ),
            click.option(
                "--orientation",
                type=click.Choice(["upright", "stored"]),
                default="upright",
                show_default=True,
                help="Turn photos as their EXIF data says, or leave them as stored, as torchvision's ImageFolder does.",
            ),
            click.option(
                "--background",
                type=click.Choice(["auto", "white", "black", "grey", "ignore"]),
                default="auto",
                show_default=True,
                help="Behind transparent parts; auto: white if the rest is dark, else black; ignore: what is stored.",
            ),
            click.option(
                "--channels",
                type=click.Choice(["auto", "grey", "colour"]),
                default="auto",
                show_default=True,
                help="One channel or three, whatever the files have; auto: one if no image has colour.",
            ),
            click.option(
                "--bits",
                type=click.IntRange(8, 16),
                default=16,
                show_default=True,
                help="Depth of the grey values in files of 16 bits.",
            ),
            click.option(
                "--largest",
                type=click.IntRange(1, 150),
                default=25,
                show_default=True,
                help="Megapixels of an image at most; larger JPEGs are reduced while they are decoded.",
            ),
            click.option(
                "--by-content", is_flag=True, help="Read files whose names do not fit, such as a PNG named .jpg."
            ),
            click.option("--first-frame", is_flag=True, help="Take the first picture of animations and of many pages."),
            click.option(
                "--transform",
                metavar="MODULE:FUNCTION",
                help="A function of yours that makes what the network takes of a picture, for a folder or --data.",
            ),
            click.option(
                "--load",
                metavar="MODULE:FUNCTION",
                help="A function of yours that reads a file, given its path, where it is no picture; likewise.",
            ),
        )
    ):
        command = option(command)
    return command
