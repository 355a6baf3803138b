"""What the paper says of each experiment, and where ours differs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One experiment of the paper.

    Args:
        title: of the section.
        anchor: of its address.
        paper: what the paper says or shows, in words.
        differs: where we differ from it, and why.
        names: of our results, the first being the main one.
    """

    title: str
    anchor: str
    paper: str
    differs: str
    names: tuple[str, ...]


SECTIONS = (
    Section(
        "Figure 2: relative information",
        "relative-information",
        "InfoGain’s subsets carry nearly 100 % of what greedy InfoLoss finds from σ² > 10⁴ on, and the approximation "
        "is close to InfoGain at σ² = 10³.",
        "The paper does not give the network’s widths; ours are those of the code that its setup follows.",
        ("relative-information",),
    ),
    Section(
        "Figure 3: brittleness",
        "brittleness",
        "Removing what the information methods name and training again flips more predictions than any baseline, at "
        "every budget; Kronfluence is the best baseline.",
        "Our learning rate falls to 0 over the last epoch, so that the accuracy depends less on the last steps. Each "
        "image costs up to 54 trainings, so there are few, and the errors are large. On Fashion-MNIST Kronfluence is "
        "level with InfoLoss. CIFAR-10 is reduced to 100 images a class and a short training.",
        ("brittleness", "brittleness-cifar10"),
    ),
    Section(
        "Figures 5 and 6: coresets",
        "coreset",
        "The accuracy of networks that were trained on a few images alone, chosen for 500 test images together, plain "
        "and with as many images of every class.",
        "The largest coreset is chosen once, and smaller ones are its first images; the accuracy is measured on test "
        "images that neither had a say nor chose σ². Balanced ones ask each class about its own images. CIFAR-10 is "
        "reduced to 250 images a class and ten epochs: up to 50 images are then ten steps, too few to learn from. The "
        "figures’ numbers are in the paper and not repeated here.",
        ("coreset", "coreset-cifar10"),
    ),
    Section(
        "Table 1: who taught the backdoor?",
        "backdoor",
        "How many of the poisoned images each method finds, on CIFAR-10 with a ResNet-9 and 1 % poisoned. The table’s "
        "numbers are in the paper and not repeated here.",
        "On Fashion-MNIST 1 % is too little for the attack to work, so 3.3 % is planted; a network of three layers "
        "sees pictures with the same patch as alike in every layer, so RepSim does as well. Our CIFAR-10 was stored "
        "as JPEG, and there is one attack.",
        ("backdoor", "backdoor-cifar10", "retraining-cifar10"),
    ),
    Section(
        "The choice of σ²",
        "tuning",
        "σ² is chosen for each method on a grid from 10⁻⁶ to 10⁵.",
        "Chosen on every fifth test image, which neither figure 3 nor figures 5 and 6 report: for predictions by the "
        "margin that is lost when what is named is removed, for coresets by the accuracy of networks trained on them "
        "alone.",
        ("tuning", "tuning-cifar10", "coreset-tuning"),
    ),
)
